package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
)

// A Describer describes a service: its own process, or the one behind a [Client]'s endpoint.
type Describer interface {
	Describe(ctx context.Context) (Description, error)
}

var (
	_ Describer = (*LocalDescriber)(nil)
	_ Describer = (*Client)(nil)
)

// A Description has a service's wiring and the state of its groups. It is also encoded as JSON.
type Description struct {
	Service      string             `json:"service"`
	Build        string             `json:"build,omitempty"` // version of the main module
	Transport    string             `json:"transport"`
	Capabilities []string           `json:"capabilities"`
	Durable      bool               `json:"durable"`
	Outbox       string             `json:"outbox,omitempty"` // its group
	Published    uint64             `json:"published"`        // messages, since the start
	Groups       []GroupDescription `json:"groups"`
}

// A GroupDescription describes a handler and its group, with the counts of this process since its start.
type GroupDescription struct {
	Group       string                `json:"group"`
	Handler     string                `json:"handler"`
	Topics      []string              `json:"topics"`
	Types       []string              `json:"types"` // with their versions; empty for a handler of any type
	Order       string                `json:"order"`
	Parks       bool                  `json:"parks"` // later messages of a key wait behind a poisoned one
	Concurrency int                   `json:"concurrency"`
	Stack       []middleware.StepInfo `json:"stack"`
	State       bus.State             `json:"state"`
	Degraded    map[string]string     `json:"degraded,omitempty"`
	Counts      GroupCounts           `json:"counts"`

	// Durations is a histogram of the deliveries' durations. It counts from the first call of Describe.
	Durations []driver.DurationBucket `json:"durations,omitempty"`
}

// GroupCounts counts a group's deliveries by outcome.
type GroupCounts struct {
	Handled     uint64 `json:"handled"`
	Duplicates  uint64 `json:"duplicates"`
	Poisoned    uint64 `json:"poisoned"`
	Discarded   uint64 `json:"discarded"`
	Redelivered uint64 `json:"redelivered"`
	Retries     uint64 `json:"retries"` // retries in process
	Panics      uint64 `json:"panics"`
	InFlight    int64  `json:"in_flight"`
}

// Settings returns the settings of a step of the stack, nil if the stack does not have the step.
func (g GroupDescription) Settings(step string) []string {
	for _, s := range g.Stack {
		if s.Step == step {
			return s.Settings
		}
	}
	return nil
}

// A LocalDescriber describes a bus of this process. Its methods may be called concurrently.
type LocalDescriber struct {
	bus       *bus.Bus
	transport driver.Transport
	stack     middleware.Stack
}

// NewLocalDescriber returns a describer of a bus whose handlers run in the stack. The transport is the bus's, or the
// one that [Idle] has replaced.
func NewLocalDescriber(b *bus.Bus, t driver.Transport, stack middleware.Stack) *LocalDescriber {
	return &LocalDescriber{b, t, stack}
}

// Describe implements [Describer]. It does not block.
func (l *LocalDescriber) Describe(context.Context) (Description, error) {
	d := Description{
		Service:      strings.TrimSuffix(l.bus.GroupName(""), "."),
		Transport:    transportName(l.transport),
		Capabilities: CapabilityNames(l.transport.Capabilities()),
		Durable:      l.transport.Capabilities().Durable,
		Groups:       []GroupDescription{},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		d.Build = info.Main.Path + "@" + info.Main.Version
	}
	if o := l.bus.Outbox(); o != nil {
		d.Outbox = o.Group()
	}
	health := make(map[string]bus.Health)
	for _, h := range l.bus.Health() {
		health[h.Group] = h
	}
	stats, durations := l.bus.Stats(), l.bus.Durations()
	d.Published = stats.Published
	for _, h := range l.bus.Handlers() {
		g := GroupDescription{
			Group: l.bus.GroupName(h.Name), Handler: h.Name, Topics: h.Topics, Types: []string{},
			Order: h.Order.String(), Parks: h.Order != driver.Unordered && !h.NoParking, Concurrency: h.Concurrency,
		}
		n := stats.Groups[h.Name]
		g.Counts = GroupCounts{n.Handled, n.Duplicates, n.Poisoned, n.Discarded, n.Redelivered, n.Retries, n.Panics, n.InFlight}
		g.Durations = durations[h.Name]
		for _, t := range h.Types {
			g.Types = append(g.Types, t.String())
		}
		g.State, g.Degraded = health[g.Group].State, health[g.Group].Degraded
		stack := l.stack
		if h.Stack != nil {
			own, ok := h.Stack.(middleware.Stack)
			if !ok {
				own = middleware.NewStack(middleware.Step{Name: fmt.Sprintf("%T", h.Stack)})
			}
			stack = own
		}
		g.Stack = stack.Describe(h)
		d.Groups = append(d.Groups, g)
	}
	return d, nil
}

func transportName(t driver.Transport) string {
	if checker, ok := t.(driver.HealthChecker); ok {
		return checker.Health().Transport
	}
	return fmt.Sprintf("%T", t)
}

// CapabilityNames returns the sorted names of a transport's capabilities.
func CapabilityNames(c driver.Capabilities) []string {
	names := []string{}
	for name, has := range map[string]bool{
		"durable": c.Durable, "delay": c.Delay, "patterns": c.Patterns, "ordered by key": c.ByKey, "ordered strictly": c.Strict,
		"poison queue": c.Poison, "parking": c.Park,
	} {
		if has {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (a Endpoint) describe(w http.ResponseWriter, r *http.Request) error {
	if a.Describer == nil {
		return &statusError{http.StatusNotImplemented, "this endpoint does not describe its service"}
	}
	d, err := a.Describer.Describe(r.Context())
	if err != nil {
		return err
	}
	return answer(w, d)
}

// Describe implements [Describer].
func (c *Client) Describe(ctx context.Context) (Description, error) {
	all, err := lines[Description](c.do(ctx, http.MethodGet, "describe", nil, nil))
	if err == nil && len(all) == 0 {
		err = errors.New("admin endpoint: the response has no description")
	}
	if err != nil {
		return Description{}, err
	}
	return all[0], nil
}
