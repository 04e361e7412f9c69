package fxmodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
	"github.com/leatbus/leat/transports"
)

// Module provides the bus and runs it.
var Module = fx.Module("leat",
	fx.Provide(ConfigFromEnv, NewStack, NewBus, NewPublishMiddleware),
	fx.Invoke(Run, RunAdmin),
)

// PublishMiddleware has the publish middleware, outermost first. fx.Decorate edits it.
type PublishMiddleware []message.PublisherDecorator

// NewPublishMiddleware returns an empty [PublishMiddleware].
func NewPublishMiddleware() PublishMiddleware { return nil }

// StackParams has the dependencies of [NewStack].
type StackParams struct {
	fx.In

	Lifecycle fx.Lifecycle
	Config    Config
	Store     middleware.Store      `optional:"true"` // the application's, in place of RedisURL
	Logger    *slog.Logger          `optional:"true"`
	Upcasters []middleware.Upcaster `group:"leat.upcasters"`
}

// NewStack returns the standard stack.
func NewStack(p StackParams) (middleware.Stack, error) {
	store, err := dedupStore(p)
	if err != nil {
		return middleware.Stack{}, err
	}
	return middleware.Standard(middleware.Config{
		Store:     store,
		Dedup:     middleware.DedupConfig{Mode: p.Config.Dedup, Keep: p.Config.DedupKeep, Logger: p.Logger},
		Retry:     p.Config.Retry,
		Timeout:   p.Config.HandlerTimeout,
		HoldNewer: p.Config.HoldNewer,
		Upcasters: p.Upcasters,
	}), nil
}

func dedupStore(p StackParams) (middleware.Store, error) {
	if p.Store != nil || p.Config.RedisURL == "" {
		return p.Store, nil
	}
	if p.Logger != nil {
		redisstore.SetLogger(p.Logger)
	}
	store, err := redisstore.Open(p.Config.RedisURL)
	if err != nil {
		return nil, fmt.Errorf("fxmodule: %sREDIS_URL: %w", Prefix, err)
	}
	p.Lifecycle.Append(fx.StopHook(store.Close))
	return store, nil
}

// BusParams has the dependencies of [NewBus].
type BusParams struct {
	fx.In

	Lifecycle         fx.Lifecycle
	Config            Config
	Stack             middleware.Stack
	PublishMiddleware PublishMiddleware
	Logger            *slog.Logger   `optional:"true"`
	Transport         bus.Transport  `optional:"true"` // the application's, in place of URL
	Outbox            driver.Outbox  `optional:"true"` // the application's, in place of OutboxURL
	Codec             bus.Codec      `optional:"true"` // the application's, in place of JSON
	Idle              *admin.Idle    `optional:"true"` // set if the application runs one command only
	Observers         []bus.Observer `group:"leat.observers"`
	Transports        []addOn        `group:"leat.transports"`
}

// NewBus opens the transport and returns a bus. It blocks until the message system has answered, at most for the configured
// connect timeout.
func NewBus(p BusParams) (*bus.Bus, error) {
	if err := p.Config.validate(); err != nil {
		return nil, err
	}
	if p.Idle == nil {
		p.Config.warnUnverified(cmp.Or(p.Logger, slog.Default()))
	}
	mux := transports.Default()
	for _, t := range p.Transports {
		mux.Register(t.open, t.schemes...)
	}
	ctx, cancel := p.Config.opening(p.Logger)
	defer cancel()
	transport := p.Transport
	if transport == nil {
		var err error
		if transport, err = mux.Open(ctx, cmp.Or(p.Config.URL, "memory://")); err != nil {
			return nil, fmt.Errorf("fxmodule: %sURL: %w", Prefix, err)
		}
	}
	outbox, err := p.outbox(ctx)
	if err != nil {
		return nil, errors.Join(err, transport.Close(ctx))
	}
	if p.Idle != nil {
		transport, outbox = p.Idle.Hold(transport, outbox)
	}
	b, err := bus.New(transport, bus.Config{
		Service:    p.Config.Service,
		Outbox:     outbox,
		Stack:      p.Stack,
		Decorators: p.PublishMiddleware,
		Observers:  append([]bus.Observer{middleware.Log(p.Logger)}, p.Observers...),
		Codec:      p.Codec,
		Logger:     p.Logger,
		MaxPayload: p.Config.MaxPayload,

		PublishTimeout: p.Config.PublishTimeout,
		DrainTimeout:   p.Config.DrainTimeout,
		Breaker:        p.Config.breaker(),
		VersionField:   p.Config.VersionField,
		ShareGroups:    p.Config.ShareGroups == On,
	})
	if err != nil {
		return nil, errors.Join(err, transport.Close(ctx))
	}
	// The transport must outlive everything that publishes: this hook runs after those of the components that depend on the bus.
	p.Lifecycle.Append(fx.StopHook(b.Close))
	return b, nil
}

// opening returns the context in which message systems and databases are opened.
func (c Config) opening(logger *slog.Logger) (context.Context, context.CancelFunc) {
	ctx := driver.WithLogger(context.Background(), logger)
	if c.ConnectTimeout > 0 {
		return context.WithTimeout(ctx, c.ConnectTimeout)
	}
	return ctx, func() {}
}

// RunParams has the dependencies of [Run].
type RunParams struct {
	fx.In

	Lifecycle  fx.Lifecycle
	Shutdowner fx.Shutdowner
	Bus        *bus.Bus
	Idle       *admin.Idle   `optional:"true"`
	Handlers   []bus.Handler `group:"leat.handlers"`
	Logger     *slog.Logger  `optional:"true"`
}

// Run registers the handlers, and adds the bus to the application's life cycle.
func Run(p RunParams) error {
	slices.SortFunc(p.Handlers, func(a, b bus.Handler) int { return cmp.Compare(a.Name, b.Name) }) // fx's value groups have no order
	for _, h := range p.Handlers {
		if err := p.Bus.Handle(h); err != nil {
			return err
		}
	}
	if p.Idle != nil {
		return nil
	}
	r := &runner{RunParams: p}
	p.Lifecycle.Append(fx.StartStopHook(r.start, r.stop))
	return nil
}

// runner runs the bus between the application's start and stop.
type runner struct {
	RunParams
	asked atomic.Bool // the application is stopping the bus
}

// start blocks until every group consumes.
func (r *runner) start(ctx context.Context) error {
	ended := make(chan error, 1)
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // it outlives the start
	go func() { ended <- r.Bus.Run(running) }()
	select {
	case <-r.Bus.Running():
		go func() {
			defer stop()
			r.ended(<-ended)
		}()
		return nil
	case err := <-ended:
		stop()
		return err
	case <-ctx.Done(): // fx does not call the stop hook of a failed start
		stop()
		return context.Cause(ctx)
	}
}

func (r *runner) stop(ctx context.Context) error {
	r.asked.Store(true)
	return r.Bus.Drain(ctx)
}

// ended shuts the application down if the bus has failed. It does nothing if the application has stopped the bus.
func (r *runner) ended(err error) {
	if r.asked.Load() {
		return
	}
	logger := cmp.Or(r.Logger, slog.Default())
	if err == nil {
		logger.Info("leat: the bus was stopped by the application")
		return
	}
	logger.Error("leat: the bus has failed; shutting the application down", "error", err)
	if err := r.Shutdowner.Shutdown(fx.ExitCode(1)); err != nil {
		logger.Error("leat: shutdown", "error", err)
	}
}
