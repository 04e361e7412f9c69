package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Config configures a [Bus]. The zero value uses JSON, slog.Default() and no stack.
type Config struct {
	// Service names the service. It begins every group name, so that two services with a handler of
	// the same name never take each other's messages, and is the CloudEvents source. "" means the last element of the
	// main module's path, plus a hyphen and the last element of the main package's path if that is another one:
	// cmd/orders of a module orders is orders, and its cmd/worker is orders-worker.
	Service string
	// Stack wraps every handler. nil means none: a message whose handler fails is redelivered with a growing
	// delay, for ever. Services use middleware.Standard.
	Stack Stack
	// Decorators are the publish middleware, outermost first.
	Decorators []message.PublisherDecorator
	// Observers observe every published message and, if the stack has the observe step, every delivery.
	Observers []Observer
	// Codec encodes and decodes events. nil means [JSON].
	Codec Codec
	// VersionField is the field of a JSON payload that may name the version of an event whose type
	// names none, as a string like "v2"; see [Delivery.Type]. "" means "version", "-" means none.
	VersionField string
	// Outbox stores the events that [Bus.InTx] publishes, if the transport does not publish in transactions itself. nil means
	// none.
	Outbox driver.Outbox
	// Logger is nil for slog.Default().
	Logger *slog.Logger
	// MaxPayload is the largest payload to publish, in bytes. 0 means 16 MiB, which is RabbitMQ 4's
	// default limit.
	MaxPayload int
	// PublishTimeout bounds a Publish outside of handlers whose context has no deadline. 0 or a negative value means no bound.
	PublishTimeout time.Duration
	// Breaker is the circuit breaker of handlers that have none of their own.
	Breaker BreakerPolicy
	// DrainTimeout is how long handlers may run after the bus begins to stop. 0 means 20 s.
	DrainTimeout time.Duration
	// ShareGroups lets the bus consume a group although a live consumer of it is another program that takes none of the same
	// events. Each then takes, and may poison, messages of the other. By default [Bus.Run] returns an error.
	ShareGroups bool

	unnamed bool // Service is the default
}

const (
	defaultMaxPayload   = 16 << 20
	defaultDrainTimeout = 20 * time.Second
	defaultVersionField = "version"
	noVersionField      = "-"
)

// A Bus publishes events to a transport and runs handlers for the messages that the transport delivers. All methods may
// be called concurrently.
type Bus struct {
	cfg       Config
	transport Transport
	durable   bool
	encoder   Encoder
	sender    sender

	groups *groups
	life   *lifecycle

	observerPanics atomic.Uint64

	_        cacheLinePad
	tracking tracking
}

// cacheLinePad keeps counters that change with every message out of the cache line of fields that are only read.
type cacheLinePad [64]byte

// New returns a bus over an open transport. It does not block. The bus owns the transport and the outbox from now on:
// [Bus.Close] closes them. New returns an error if the transport is nil or cfg is invalid.
func New(t Transport, cfg Config) (*Bus, error) {
	if t == nil {
		return nil, errors.New("bus: transport is nil; open one with transports.Open")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Bus{
		cfg:       cfg,
		transport: t,
		durable:   t.Capabilities().Durable,
		encoder:   Encoder{Codec: cfg.Codec, Source: cfg.Service, Instance: NewID(), known: &knownTypes{}},
		groups:    newGroups(t, cfg),
		life:      newLifecycle(),
	}
	b.cfg.Observers = make([]Observer, len(cfg.Observers))
	for i, o := range cfg.Observers {
		b.cfg.Observers[i] = guardObserver(o, cfg.Logger, &b.observerPanics)
	}
	b.sender = sender{cfg: &b.cfg, transport: t, durable: b.durable, groups: b.groups, life: b.life, tracking: &b.tracking}
	send, err := b.sender.decorate(cfg.Decorators)
	if err != nil {
		return nil, err
	}
	b.sender.send = withPublishObservers(b.cfg.Observers, send, false)
	return b, nil
}

func (c Config) withDefaults() (Config, error) {
	if c.Service == "" {
		c.Service, c.unnamed = driver.DefaultService(), true
	}
	if err := driver.ValidateName(c.Service, driver.MaxGroupBytes/2-len(".")); err != nil {
		return c, fmt.Errorf("bus: service %q: %w", c.Service, err)
	}
	if err := c.Breaker.Validate(); err != nil {
		return c, err
	}
	for i, o := range c.Observers {
		if o == nil {
			return c, fmt.Errorf("bus: observer %d of %d is nil", i+1, len(c.Observers))
		}
	}
	if c.MaxPayload < 0 {
		return c, fmt.Errorf("bus: MaxPayload is %d; it can't be negative, and 0 means %d", c.MaxPayload, defaultMaxPayload)
	}
	if c.DrainTimeout < 0 {
		return c, fmt.Errorf("bus: DrainTimeout is %s; it can't be negative, and 0 means %s", c.DrainTimeout, defaultDrainTimeout)
	}
	if c.Codec == nil {
		c.Codec = JSON{}
	}
	c.VersionField = cmp.Or(c.VersionField, defaultVersionField)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	c.MaxPayload = cmp.Or(c.MaxPayload, defaultMaxPayload)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, defaultDrainTimeout)
	return c, nil
}

// Handle registers a handler. It does not block, and must be called before [Bus.Run]. It returns an error if the handler is
// invalid, its name is taken, the stack refuses it, or the bus runs already; [ErrUnsupported] if the transport lacks what
// the handler needs; and [ErrClosed] after Close.
func (b *Bus) Handle(h Handler) error {
	h = h.withDefaults()
	if err := h.Validate(); err != nil {
		return err
	}
	g := &group{bus: b, name: b.GroupName(h.Name), handler: h}
	policy := b.cfg.Breaker
	if h.Breaker != nil {
		policy = *h.Breaker
	}
	g.breaker = g.newBreaker(policy)
	if err := g.build(); err != nil {
		return fmt.Errorf("bus: handler %q: %w", h.Name, err)
	}
	if err := b.transport.Capabilities().Check(g.subscription()); err != nil {
		return fmt.Errorf("bus: handler %q: %w", h.Name, err)
	}

	if b.life.isClosed() {
		return fmt.Errorf("bus: handler %q: %w", h.Name, ErrClosed)
	}
	return b.groups.add(g)
}

// Handlers returns the registered handlers, in the order of their registration.
func (b *Bus) Handlers() []Handler {
	groups := b.groups.all()
	all := make([]Handler, len(groups))
	for i, g := range groups {
		all[i] = g.handler
	}
	return all
}

// GroupName returns the name of a handler's group: <service>.<handler name>.
func (b *Bus) GroupName(handler string) string { return b.cfg.Service + "." + handler }

// Transport returns the transport under the bus.
func (b *Bus) Transport() Transport { return b.transport }

// Encoder returns the bus's encoder.
func (b *Bus) Encoder() Encoder { return b.encoder }

// Running returns a channel that is closed when every group is subscribed and consumes.
func (b *Bus) Running() <-chan struct{} { return b.life.running }

// Drain stops the handlers, as the end of Run's context does. It blocks until Run returns, and returns Run's error.
//
// Handlers may run until one of these comes first: the drain timeout passes, ctx's deadline is about two seconds away, or
// ctx is cancelled. If Drain and Close are called several times, the first of their contexts to end counts. Deliveries that
// are not settled by then are given back to the transport. If that takes too long as well, Drain returns ctx's error.
//
// The transport stays open and Publish still works. On a transport that is not durable, Publish returns [ErrClosed] outside
// of handlers, because the message would be lost.
//
// A handler can't drain or close its own bus, because both would wait for the handler: they return an error at once if ctx
// is a handler's.
func (b *Bus) Drain(ctx context.Context) error {
	if b.handles(ctx) {
		return fmt.Errorf("bus: drain: %w", errInHandler)
	}
	return b.life.drain(ctx, b.groups.seal())
}

var errInHandler = errors.New("called in a handler of this bus, so it would wait for itself; " +
	"stop the bus from outside of handlers, for example by the end of Run's context")

// handles reports whether ctx is the context of one of the bus's handlers.
func (b *Bus) handles(ctx context.Context) bool {
	d := DeliveryFrom(ctx)
	return d != nil && d.group != nil && d.group.bus == b
}

// Close drains the bus and closes its outbox and transport. It blocks as [Bus.Drain] does. The error names handlers that did
// not return, unless Run or Drain has returned that error before. Later calls wait for the first one, each until its own
// context is done, and return the same error. After Close, Publish returns [ErrClosed]. A Publish that is under way finishes
// first on a durable transport, if the time suffices; else its error is a [*PublishError] that does not match ErrClosed.
func (b *Bus) Close(ctx context.Context) error {
	if b.handles(ctx) {
		return fmt.Errorf("bus: close: %w", errInHandler)
	}
	return b.life.close(ctx, func() error {
		reported := b.life.state() == Stopped // Run or Drain has returned the error
		drainErr := b.life.drain(ctx, b.groups.seal())
		if reported {
			drainErr = nil
		}
		close(b.life.closing)
		b.warnLost(ctx)
		errs := []error{drainErr, b.groups.closeReceivers(ctx)}
		if b.cfg.Outbox != nil {
			errs = append(errs, b.cfg.Outbox.Close(ctx))
		}
		return errors.Join(append(errs, b.transport.Close(ctx))...)
	})
}

// warnLost counts what is lost when the transport is closed, if it is not durable.
func (b *Bus) warnLost(ctx context.Context) {
	if b.durable {
		return
	}
	waiting := b.groups.backlog(func(_ *group, now, later int) int { return now + later })
	poisoned := 0
	if b.transport.Capabilities().Poison {
		for _, g := range b.groups.all() {
			if n, err := b.transport.PoisonQueue(g.name).Len(ctx); err == nil {
				poisoned += n
			}
		}
	}
	if waiting+poisoned > 0 {
		b.cfg.Logger.Warn("leat: messages lost: the transport is not durable", "waiting", waiting, "poisoned", poisoned,
			"fix", "a durable transport; see docs/moving.md")
	}
}
