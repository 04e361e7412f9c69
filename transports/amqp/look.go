package amqp

// The registry still knows the browser by this name.
type look = browser

func (t *Transport) look(b *browser, lock string, do func(*browser) error) error {
	return t.browse(b, lock, do)
}
