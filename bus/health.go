package bus

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// Health is the state of a group, or of the outbox.
type Health struct {
	Group    string            `json:"group"`
	State    State             `json:"state"`
	Degraded map[string]string `json:"degraded,omitempty"` // part of the group → what is wrong with it
}

// State is the state of a group.
type State string

// States of a group.
const (
	Waiting  State = "waiting"  // not consuming yet
	Running  State = "running"  // consuming
	Degraded State = "degraded" // consuming, but a part such as the poison queue does not work
	Draining State = "draining" // finishing what it has, and taking no more
	Stopped  State = "stopped"
)

// partTransport is the part under which every group reports a problem of the transport.
const partTransport = "transport"

// Health returns the state of every group, in the order of registration, and of the outbox. Every group reports a problem of
// the transport; see [Bus.TransportHealth]. It does not block.
func (b *Bus) Health() []Health {
	var broken error
	if h, ok := b.TransportHealth(); ok {
		broken = transportProblem(h)
	}
	all := []Health{}
	b.groups.each(func(g *group) {
		h := Health{Group: g.name, State: b.life.state(), Degraded: g.health.snapshot()}
		if stuck := g.stuck(); stuck != "" {
			h.degrade("handler", stuck)
		}
		if broken != nil {
			h.degrade(partTransport, driver.OneLine(broken.Error(), driver.MaxErrorBytes))
		}
		all = append(all, h)
	})
	if o := b.cfg.Outbox; o != nil {
		h := Health{Group: o.Group(), State: b.life.state()}
		if err := o.Problem(); err != nil {
			h.degrade("relay", driver.OneLine(fmt.Sprint(err), driver.MaxErrorBytes))
		}
		all = append(all, h)
	}
	for i := range all {
		if all[i].State == Running && len(all[i].Degraded) > 0 {
			all[i].State = Degraded
		}
	}
	return all
}

func (h *Health) degrade(part, reason string) {
	if h.Degraded == nil {
		h.Degraded = make(map[string]string)
	}
	h.Degraded[part] = reason
}

// stuckAfter is how much longer than its handler's timeout one try may take before the group reports it.
const stuckAfter = time.Minute

// stuck returns a text that names a message whose handler does not return, "" if there is none.
func (g *group) stuck() string {
	limit := max(g.handler.Timeout, 0) + stuckAfter
	for _, w := range g.workers {
		d := w.current.Load()
		if d == nil {
			continue
		}
		began := d.breaker.Started
		if failed := d.lastFailed.Load(); failed != 0 {
			began = time.Unix(0, failed)
		}
		if took := time.Since(began); took > limit {
			return fmt.Sprintf("message %s has been in the handler for %s", d.breaker.ID, took.Round(time.Second))
		}
	}
	return ""
}

// health records the problems of a group by part. A healthy group costs one atomic load.
type health struct {
	count atomic.Int32
	mu    sync.Mutex
	parts map[string]part
}

// part is the problem of a part of a group.
type part struct {
	reason string
	until  time.Time // when the problem expires unless it is set again; zero for never
}

// set records the problem of a part, nil for none, and reports whether the part's state has changed.
func (h *health) set(name string, reason error) (changed bool) {
	return h.setUntil(name, reason, time.Time{})
}

// setUntil records a problem that expires at a time, unless it is set again.
func (h *health) setUntil(name string, reason error, until time.Time) (changed bool) {
	if reason == nil && h.count.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	_, was := h.parts[name]
	if reason == nil {
		delete(h.parts, name)
	} else {
		if h.parts == nil {
			h.parts = make(map[string]part)
		}
		h.parts[name] = part{driver.OneLine(fmt.Sprint(reason), driver.MaxErrorBytes), until}
	}
	h.count.Store(int32(len(h.parts))) //nolint:gosec // a handful of parts
	return was != (reason != nil)
}

func (h *health) snapshot() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	if len(h.parts) == 0 {
		return nil
	}
	reasons := make(map[string]string, len(h.parts))
	for name, p := range h.parts {
		reasons[name] = p.reason
	}
	return reasons
}

// expire deletes problems that have expired. The caller holds h.mu.
func (h *health) expire() {
	now := time.Now()
	maps.DeleteFunc(h.parts, func(_ string, p part) bool { return !p.until.IsZero() && now.After(p.until) })
	h.count.Store(int32(len(h.parts))) //nolint:gosec // a handful of parts
}
