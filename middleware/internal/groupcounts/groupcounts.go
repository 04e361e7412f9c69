// Package groupcounts counts for metrics what waits in the groups of a bus. Counting may take the message system seconds, so
// readers get the last counts, and old ones are replaced in the background.
package groupcounts

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Defaults of [Counter].
const (
	DefaultRefresh = 15 * time.Second
	DefaultWait    = 50 * time.Millisecond
	DefaultTimeout = 10 * time.Second
)

// Counts is what was counted last.
type Counts struct {
	Groups   []driver.GroupInfo // of the bus
	At       time.Time          // zero if nothing was counted yet
	Failures int                // how often the message system could not be asked
}

// Counter keeps the last counts of the message system. At most one query is under way. Its exported fields must not be
// changed once Counts was called; Counts may be called concurrently.
type Counter struct {
	Refresh time.Duration // how old counts must be before they are replaced
	Wait    time.Duration // how long Counts waits for new ones
	Timeout time.Duration // of a query

	bus       *bus.Bus
	inspector driver.Inspector

	mu     sync.Mutex
	asking chan struct{} // closed when the query under way is done; nil if none is
	asked  time.Time     // when the last query began; zero if there was none
	last   Counts
}

// New returns a counter of the groups of a bus, with the defaults. It returns an error that matches [bus.ErrUnsupported] if
// the transport counts nothing.
func New(b *bus.Bus) (*Counter, error) {
	inspector, ok := b.Transport().(driver.Inspector)
	if !ok {
		return nil, fmt.Errorf("the transport %T does not count what waits in its groups: %w", b.Transport(), bus.ErrUnsupported)
	}
	return &Counter{Refresh: DefaultRefresh, Wait: DefaultWait, Timeout: DefaultTimeout, bus: b, inspector: inspector}, nil
}

// Counts returns the last counts. Old ones are replaced, for which it waits a moment.
func (c *Counter) Counts() Counts {
	if asking := c.ask(); asking != nil {
		timer := time.NewTimer(c.Wait)
		defer timer.Stop()
		select {
		case <-asking:
		case <-timer.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// ask begins a query if the values are old and none is under way. It returns a channel that is closed with the answer,
// nil if the values are not old.
func (c *Counter) ask() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking != nil {
		return c.asking
	}
	if !c.asked.IsZero() && time.Since(c.asked) < c.Refresh {
		return nil
	}
	c.asked = time.Now()
	done := make(chan struct{})
	c.asking = done
	go func() {
		defer close(done)
		c.count()
	}()
	return done
}

// count asks the message system. A panic of the transport counts as a failure: it must not end the process.
func (c *Counter) count() {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	var own []driver.GroupInfo
	err := fmt.Errorf("groupcounts: %w", bus.ErrGoexit)
	defer func() {
		if v := recover(); v != nil {
			err = driver.NewPanicError(v)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asking = nil
		if err != nil {
			c.last.Failures++
			slog.Default().Debug("leat: groups not counted for metrics", "error", err)
			return
		}
		c.last.Groups, c.last.At = own, time.Now()
	}()
	if len(c.bus.Handlers()) == 0 { // then a transport may look for the groups of others
		err = nil
		return
	}
	var all []driver.GroupInfo
	if all, err = c.inspector.Groups(ctx); err == nil {
		own = c.own(all)
	}
}

// own returns the groups of the bus.
func (c *Counter) own(all []driver.GroupInfo) (own []driver.GroupInfo) {
	names := make(map[string]bool)
	for _, h := range c.bus.Handlers() {
		names[c.bus.GroupName(h.Name)] = true
	}
	for _, g := range all {
		if names[g.Name] {
			own = append(own, g)
		}
	}
	return own
}

// ParkedKeys returns how many keys are held back. It is unknown if messages are parked and no key is: the transport does not
// count keys.
func ParkedKeys(g driver.GroupInfo) (float64, bool) {
	return float64(g.ParkedKeys), g.ParkedKeys > 0 || g.ParkedKeys == 0 && g.Parked == 0
}

// OldestAge returns the age of the oldest message in seconds. It is unknown if something waits, and the transport does not say
// since when.
func OldestAge(g driver.GroupInfo) (float64, bool) {
	if g.Oldest.IsZero() {
		return 0, g.Waiting == 0 && g.Delayed == 0
	}
	return max(time.Since(g.Oldest).Seconds(), 0), true
}
