package amqp

// ReplayWindow is how many messages a killed replay leaves in both places at most.
const ReplayWindow = replayWindow

// QueuesForTest are the queues that tests clean up.
func (t *Transport) QueuesForTest() []string {
	_, groups := t.topology.remembered()
	var queues []string
	for _, s := range groups {
		queues = append(append(queues, t.topology.queues(s)...), t.topology.own(s)...)
	}
	return queues
}

// HeldForTest is how many held messages the transport's groups know of, all written down.
func (t *Transport) HeldForTest() (n int) {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		if f.session != nil && f.session.held != nil {
			for _, k := range f.session.held.keys {
				for _, e := range k.entries {
					if e.tag != 0 {
						n++
					}
				}
			}
		}
		f.mu.Unlock()
	}
	return n
}

// TickForTest is what time does to held messages.
func (t *Transport) TickForTest() {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		s := f.session
		f.mu.Unlock()
		if s != nil && s.held != nil {
			s.held.tick()
			if err := s.held.checkToken(); err != nil {
				s.held.fail(err)
			}
		}
	}
}

// DelayedForTest is how many messages the transport holds until their time.
func (t *Transport) DelayedForTest() int {
	t.warden.mu.Lock()
	defer t.warden.mu.Unlock()
	return len(t.warden.held)
}

// LoseLeadForTest has the broker give the tokens of the transport's ordered groups to other processes.
func (t *Transport) LoseLeadForTest() {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		s := f.session
		f.mu.Unlock()
		if s != nil && s.held != nil {
			_ = s.held.ch.Cancel(leadTag, noWait)
		}
	}
}

// StandsByForTest reports whether all groups have a session in which they lead or stand by.
func (t *Transport) StandsByForTest() bool {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		s := f.session
		ready := s != nil && s.held != nil
		f.mu.Unlock()
		if !ready {
			return false
		}
	}
	return true
}
