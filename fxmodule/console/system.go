package console

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// system is the message system that is shown, and the process of its service if that can be asked.
type system struct {
	transport driver.Transport
	lister    driver.ConsumerLister // nil if the message system lists no consumers
	remover   driver.GroupRemover   // nil if groups can't be deleted: those in memory end with their process
	describer admin.Describer       // nil if nobody here knows the wiring
	dryRunner admin.DryRunner       // nil if nobody here has the handlers

	// setPaused pauses a group of the process, or resumes it; nil if no process can be paused from here.
	setPaused func(ctx context.Context, group string, paused bool) error
}

func newSystem(cfg Config) system {
	own, b := cfg.Transport, cfg.Bus
	s := system{transport: own}
	if b != nil {
		own = b.Transport()
		s.transport = admin.WithOutbox(own, b.Outbox())
		s.describer, s.dryRunner = admin.NewLocalDescriber(b, own, cfg.Stack), admin.NewLocalDryRunner(b, cfg.Stack)
		s.setPaused = func(_ context.Context, group string, paused bool) error { return b.SetPaused(group, paused) }
	} else if remote, ok := own.(*admin.Client); ok {
		s.describer, s.dryRunner, s.setPaused = remote, remote, remote.SetPaused
	}
	s.lister, _ = own.(driver.ConsumerLister)
	if own.Capabilities().Durable {
		s.remover, _ = s.transport.(driver.GroupRemover)
	}
	return s
}

// inspector returns what shows the groups.
func (s system) inspector() (driver.Inspector, error) {
	inspector, ok := s.transport.(driver.Inspector)
	if !ok {
		return nil, &pageError{http.StatusNotImplemented, "This transport shows operators nothing but poison queues."}
	}
	return inspector, nil
}

// sample asks for the groups, and for the wiring.
func (s system) sample(ctx context.Context) (sample, error) {
	inspector, err := s.inspector()
	if err != nil {
		return sample{}, err
	}
	groups, err := inspector.Groups(ctx)
	if err != nil {
		return sample{}, err
	}
	return sample{at: time.Now(), groups: groups, service: s.describe(ctx)}, nil
}

// describe returns the wiring, nil if nobody knows it.
func (s system) describe(ctx context.Context) *admin.Description {
	if s.describer == nil {
		return nil
	}
	d, err := s.describer.Describe(ctx)
	if err != nil { // an endpoint of an older version has none
		return nil
	}
	return &d
}

// consumers returns who consumes a group, nothing if the message system does not say.
func (s system) consumers(ctx context.Context, group string) ([]driver.Consumer, error) {
	if s.lister == nil {
		return nil, nil
	}
	found, err := s.lister.Consumers(ctx, group)
	if errors.Is(err, driver.ErrUnsupported) {
		return nil, nil
	}
	return found.Consumers, err
}

// finding is a finding of the doctor.
type finding struct {
	driver.Finding
	State chip
}

func (s system) doctor(r *http.Request) (view, error) {
	inspector, err := s.inspector()
	if err != nil {
		return view{}, err
	}
	var page []finding
	for _, f := range admin.Diagnose(r.Context(), inspector) {
		state := chip{"ok", "ok"}
		if f.Err != nil {
			state = chip{"bad", "wrong"}
		}
		page = append(page, finding{f, state})
	}
	return view{"doctor", "doctor", "Doctor", page}, nil
}

// wiringPage is what the service is made of.
type wiringPage struct {
	Service      *admin.Description // nil if nobody here knows it
	Capabilities []string           // of the transport
}

func (s system) wiring(r *http.Request) (view, error) {
	page := wiringPage{Service: s.describe(r.Context()), Capabilities: admin.CapabilityNames(s.transport.Capabilities())}
	return view{"wiring", "wiring", "Wiring", page}, nil
}

// wiringJSON sends what the service is made of, as leat describe --json does.
func (s system) wiringJSON(w http.ResponseWriter, r *http.Request) error {
	d := s.describe(r.Context())
	if d == nil {
		return &pageError{http.StatusNotFound, "The wiring is known in the service's process only."}
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	attach(w, "application/json", "wiring.json")
	_, _ = w.Write(text)
	return nil
}
