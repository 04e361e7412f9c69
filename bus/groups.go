package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/leatbus/leat/bus/driver"
)

// groups has the groups of a bus and subscribes each of them once. Its methods may be called concurrently.
type groups struct {
	transport Transport
	logger    *slog.Logger
	unnamed   bool // the service has its default name
	shared    bool // groups may be shared with other programs
	table     driver.TopicTable[*group]

	mu     sync.Mutex // guards the following fields, and the receivers and workers of the groups
	list   []*group
	sealed bool // Run or Drain was called: no group is added any more

	subscribing chan struct{} // a mutex that a context can interrupt: holds a token while it is unlocked
	notListed   bool          // a look-up of consumers failed; guarded by subscribing
	subscribed  atomic.Bool   // every group has its receiver

	keyParked chan struct{} // has a token if a message was poisoned that stops its key
}

func newGroups(t Transport, cfg Config) *groups {
	gs := &groups{
		transport:   t,
		logger:      cfg.Logger,
		unnamed:     cfg.unnamed,
		shared:      cfg.ShareGroups,
		subscribing: make(chan struct{}, 1),
		keyParked:   make(chan struct{}, 1),
	}
	gs.subscribing <- struct{}{}
	return gs
}

func (gs *groups) add(g *group) error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	switch {
	case gs.sealed:
		return fmt.Errorf("bus: handler %q is registered after Run; register handlers first", g.handler.Name)
	case slices.ContainsFunc(gs.list, func(other *group) bool { return other.name == g.name }):
		return fmt.Errorf("bus: handler %q is registered twice; a name is one consumer group, so give the second handler its own, "+
			"or put both functions into one with handlers.Routes", g.handler.Name)
	}
	gs.list = append(gs.list, g)
	gs.table.Add(g, g.handler.Topics...)
	gs.subscribed.Store(false)
	return nil
}

// seal makes add return an error from now on, and reports whether this is the first call.
func (gs *groups) seal() (first bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	first = !gs.sealed
	gs.sealed = true
	return first
}

// all returns the groups in the order of their registration.
func (gs *groups) all() []*group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.list
}

// each calls do with every group. It has mu locked, so do may read and change receivers and workers, and must not block.
func (gs *groups) each(do func(*group)) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.list {
		do(g)
	}
}

// subscribeUntil subscribes every group. It returns early if stop is closed.
func (gs *groups) subscribeUntil(ctx context.Context, stop <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	subscribed := make(chan error, 1)
	go func() { subscribed <- gs.subscribe(ctx) }()
	select {
	case err := <-subscribed:
		return err
	case <-stop:
		cancel()
		if err := <-subscribed; err != nil {
			return fmt.Errorf("bus: run: stopped at start: %w", ErrClosed)
		}
		return nil
	}
}

// subscribe subscribes every group that is not subscribed yet. A message published after that waits for its handler.
func (gs *groups) subscribe(ctx context.Context) error {
	if gs.subscribed.Load() {
		return nil
	}
	select {
	case <-gs.subscribing:
		defer func() { gs.subscribing <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("bus: subscribe: %w", context.Cause(ctx))
	}
	if err := gs.checkService(ctx); err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	for {
		g := gs.withoutReceiver()
		if g == nil {
			return nil
		}
		receiver, err := gs.subscribeGroup(ctx, g.subscription()) // may block, so gs.mu is not held
		if err != nil {
			return fmt.Errorf("bus: subscribe handler %q: %w", g.handler.Name, err)
		}
		if n, ok := receiver.(driver.ParkNotifier); ok {
			n.OnPark(g.parked)
		}
		gs.mu.Lock()
		g.receiver = receiver
		gs.mu.Unlock()
	}
}

// subscribeGroup subscribes a group that no other program uses by mistake.
func (gs *groups) subscribeGroup(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	// Before it adds its topics to the group, because they stay there.
	warned, err := gs.checkSharing(ctx, s)
	if err != nil {
		return nil, err
	}
	receiver, err := gs.transport.Subscribe(ctx, s)
	if err != nil {
		return nil, err
	}
	if warned {
		return receiver, nil
	}
	// And after it, because two programs may start at the same time. Nothing was delivered yet.
	if _, err := gs.checkSharing(ctx, s); err != nil {
		return nil, errors.Join(err, receiver.Close(ctx))
	}
	return receiver, nil
}

// checkService returns an error if the service has its default name and groups exist under the default name of an earlier
// version: their messages would not be handled any more.
func (gs *groups) checkService(ctx context.Context) error {
	finder, ok := gs.transport.(driver.GroupFinder)
	if !ok || !gs.unnamed {
		return nil
	}
	var names []string
	for _, g := range gs.all() {
		names = append(names, g.handler.Name)
	}
	return driver.CheckDefaultService(ctx, finder, names...)
}

// withoutReceiver returns the next group to subscribe, nil if all of them are subscribed.
func (gs *groups) withoutReceiver() *group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.list {
		if g.receiver == nil {
			return g
		}
	}
	gs.subscribed.Store(true)
	return nil
}

// backlog returns the sum of count over all groups whose transport is not durable. now is the number of messages that could
// be handled at once, later the number of those that wait for a time.
func (gs *groups) backlog(count func(g *group, now, later int) int) (n int) {
	gs.each(func(g *group) {
		if f, ok := g.receiver.(driver.BacklogCounter); ok {
			now, later := f.Backlog()
			n += count(g, now, later)
		}
	})
	return n
}

func (gs *groups) closeReceivers(ctx context.Context) error {
	var receivers []driver.Receiver
	gs.each(func(g *group) {
		if g.receiver != nil {
			receivers = append(receivers, g.receiver)
		}
	})
	var errs []error
	for _, r := range receivers { // without mu: Health and Stats need it, and Close of a receiver may block
		errs = append(errs, r.Close(ctx))
	}
	return errors.Join(errs...)
}
