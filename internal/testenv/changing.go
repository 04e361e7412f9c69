package testenv

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

// Changing is a transport that changes its deliveries.
type Changing struct {
	driver.Transport
	Change func(*driver.Delivery)
}

// Subscribe subscribes to the transport.
func (c Changing) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	feed, err := c.Transport.Subscribe(ctx, s)
	return changingFeed{feed, c.Change}, err
}

type changingFeed struct {
	driver.Receiver
	change func(*driver.Delivery)
}

// Next returns the next delivery after the change.
func (f changingFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	d, err := f.Receiver.Next(ctx)
	if err == nil {
		f.change(d)
	}
	return d, err
}
