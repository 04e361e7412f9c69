package fxmodule_test

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type orderPlacedV1 struct{ ID, Total string }

func (orderPlacedV1) EventType() (string, int) { return "order.placed", 1 }

type orderPlaced struct{ ID, Cents string }

func (orderPlaced) EventType() (string, int) { return "order.placed", 2 }

// journal records events in order.
type journal struct {
	mu    sync.Mutex
	lines []string
	wrote chan string
}

func newJournal() *journal { return &journal{wrote: make(chan string, 100)} }

func (j *journal) write(line string) {
	j.mu.Lock()
	j.lines = append(j.lines, line)
	j.mu.Unlock()
	j.wrote <- line
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.lines...)
}

func (j *journal) await(t *testing.T, want string) {
	t.Helper()
	for {
		select {
		case line := <-j.wrote:
			if line == want {
				return
			}
		case <-time.After(time.Minute):
			t.Fatalf("waited for %q; have %v", want, j.all())
		}
	}
}

// ledger has a dependency that is only ready after its start.
type ledger struct {
	journal *journal
	ready   bool
}

func newLedger(lc fx.Lifecycle, j *journal) *ledger {
	l := &ledger{journal: j}
	lc.Append(fx.StartStopHook(func() { l.ready = true; j.write("ledger started") }, func() { j.write("ledger stopped") }))
	return l
}

func (l *ledger) record(_ context.Context, e orderPlaced) error {
	if !l.ready {
		return bus.Permanent(errors.New("the ledger was not started"))
	}
	l.journal.write("recorded " + e.ID + " " + e.Cents)
	return nil
}

// server publishes, as an HTTP server would.
func server(lc fx.Lifecycle, b *bus.Bus, j *journal) {
	lc.Append(fx.StartStopHook(
		func(ctx context.Context) error {
			j.write("server started")
			return b.Publish(ctx, orderPlacedV1{ID: "42", Total: "19"})
		},
		func() { j.write("server stopped") }))
}

func quiet() fx.Option {
	return fx.Options(fx.NopLogger, fx.StartTimeout(time.Minute), fx.StopTimeout(time.Minute), fx.Provide(func() *slog.Logger { return slog.New(slog.DiscardHandler) }))
}

func TestModule_startAndStopOrder(t *testing.T) {
	j := newJournal()
	app := fxtest.New(t, quiet(), fx.Supply(j),
		fx.Invoke(server), // before the module, as a module listed first would
		fxmodule.Module,
		fx.Provide(newLedger),
		fxmodule.HandleMethod("ledger", (*ledger).record, handlers.OrderedByKey()),
		fxmodule.HandleFunc(func(j *journal) bus.Handler {
			return handlers.Raw("audit", []string{"order.>"}, func(_ context.Context, msg *message.Message) error {
				j.write("audited " + driver.TopicOf(msg))
				return nil
			})
		}),
		fxmodule.Upcast(func(old orderPlacedV1) orderPlaced { return orderPlaced{ID: old.ID, Cents: old.Total + "00"} }),
	)
	app.RequireStart()
	eventually(t, func() bool {
		return slices.Contains(j.all(), "recorded 42 1900") && slices.Contains(j.all(), "audited order.placed.v1")
	})
	app.RequireStop()
	lines := strings.Join(j.all(), "\n")
	require.Less(t, strings.Index(lines, "ledger started"), strings.Index(lines, "recorded"))
	require.Less(t, strings.Index(lines, "recorded"), strings.Index(lines, "ledger stopped"))
}

func TestStack_editedByDecorate(t *testing.T) {
	j := newJournal()
	app := fxtest.New(t, quiet(), fx.Supply(j), fxmodule.Module,
		fxmodule.Handle("ledger", func(context.Context, orderPlaced) error { return nil }),
		fx.Decorate(func(s middleware.Stack) middleware.Stack {
			return s.Before(middleware.StepRetry, middleware.Use("witness", func(next message.HandlerFunc) message.HandlerFunc {
				return func(msg *message.Message) ([]*message.Message, error) {
					j.write("witnessed")
					return next(msg)
				}
			}))
		}),
		fx.Decorate(func(p fxmodule.PublishMiddleware) fxmodule.PublishMiddleware {
			return append(p, message.MessageTransformPublisherDecorator(func(*message.Message) { j.write("published") }))
		}),
		fx.Invoke(func(b *bus.Bus) error { return b.Publish(context.Background(), orderPlaced{ID: "1"}) }),
	)
	app.RequireStart()
	j.await(t, "witnessed")
	app.RequireStop()
	require.Equal(t, []string{"published", "witnessed"}, j.all())
}

func TestConfig_replacedAndDecorated(t *testing.T) {
	var got fxmodule.Config
	app := fxtest.New(t, quiet(), fxmodule.Module,
		fx.Replace(fxmodule.Config{URL: "memory://?queue=7", Service: "shop"}),
		fx.Invoke(func(c fxmodule.Config, b *bus.Bus) {
			got = c
			require.Equal(t, "shop.x", b.GroupName("x"))
		}))
	app.RequireStart().RequireStop()
	require.Equal(t, "memory://?queue=7", got.URL)

	t.Setenv("LEAT_SERVICE", "from-env")
	app = fxtest.New(t, quiet(), fxmodule.Module,
		fx.Decorate(func(c fxmodule.Config) fxmodule.Config { c.Service += "-2"; return c }),
		fx.Invoke(func(b *bus.Bus) { require.Equal(t, "from-env-2.x", b.GroupName("x")) }))
	app.RequireStart().RequireStop()
}

func TestConfig_namesTheFieldOfTheVersionInAForeignPayload(t *testing.T) {
	t.Setenv("LEAT_VERSION_FIELD", "schema")
	got := make(chan string, 1)
	var b *bus.Bus
	app := fxtest.New(t, quiet(), fxmodule.Module, fx.Populate(&b),
		fxmodule.Handle("x", func(_ context.Context, e orderPlaced) error {
			got <- e.ID
			return nil
		}))
	app.RequireStart()
	require.NoError(t, b.PublishMessages(t.Context(), &message.Message{
		UUID: "w-1", Payload: []byte(`{"id":"a","version":"v1","schema":"v2"}`), Metadata: message.Metadata{driver.HeaderType: "order.placed"},
	}))
	select {
	case id := <-got:
		require.Equal(t, "a", id)
	case <-time.After(time.Minute):
		t.Fatal("the event was not handled")
	}
	app.RequireStop()
}

func TestConfig_rejectsInvalidVariables(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"LEAT_ULR", "memory://", "Did you mean LEAT_URL?"},
		{"LEAT_URL", "memory://?qeue=7", `Did you mean "queue"?`},
		{"LEAT_URL", "memroy://", "Did you mean memory://?"},
		{"LEAT_DRAIN_TIMEOUT", "soon", "LEAT_DRAIN_TIMEOUT: "},
		{"LEAT_HANDLER_TIMEOUT", "30", "written as 500ms, 30s or 5m"},
		{"LEAT_DEDUP_KEEP", "-1h", "LEAT_DEDUP_KEEP is -1h0m0s; it can't be negative"},
		{"LEAT_DEDUP", "ajar", "open, closed or off"},
		{"LEAT_DEDUP", "close", `LEAT_DEDUP is "close"; it is open, closed or off. Did you mean closed?`},
		{"LEAT_BREAKER", "open", `LEAT_BREAKER is "open"; it is on or off`},
		{"LEAT_BREAKER_PROBE", "-1s", "LEAT_BREAKER_PROBE is -1s; it can't be negative"},
		{"LEAT_SHARE_GROUPS", "yes", `LEAT_SHARE_GROUPS is "yes"; it is on or off`},
		{"LEAT_REDIS_URL", "redis://localhost:notaport", "LEAT_REDIS_URL"},
		{"LEAT_SERVICE", "my shop", `"my shop"`},
		{"LEAT_ADMIN", ":7070", "LEAT_ADMIN: admin address \":7070\" is open to every user of this machine; listen on a unix socket"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Setenv(c.name, c.value)
			app := fx.New(quiet(), fxmodule.Module, fx.Invoke(func(*bus.Bus) {}))
			require.ErrorContains(t, app.Err(), c.want)
		})
	}
}

func TestHandle_mistakesFailTheStart(t *testing.T) {
	nothing := func(context.Context, orderPlaced) error { return nil }
	for _, c := range []struct {
		name    string
		options fx.Option
		want    string
	}{
		{"a name twice", fx.Options(fxmodule.Handle("x", nothing), fxmodule.Handle("x", nothing)), "registered twice"},
		{"no function", fxmodule.Handle[orderPlaced]("x", nil), "its function is nil"},
		{"an event that can't be one", fxmodule.Handle("x", func(context.Context, versionZero) error { return nil }), "versions start at 1"},
		{"what is no constructor of a handler", fxmodule.HandleFunc(func() []bus.Handler { return nil }), "HandleFunc takes a constructor"},
		{"what is no constructor of an observer", fxmodule.Observe(func() int { return 1 }), "Observe takes a constructor"},
		{"a dependency that nobody provides", fxmodule.HandleMethod("x", (*ledger).record), "missing type: *fxmodule_test.ledger"},
		{"a wrong order of the stack", fx.Options(fxmodule.Handle("x", nothing), fx.Decorate(func(s middleware.Stack) middleware.Stack {
			return s.Without(middleware.StepPoison).After(middleware.StepRetry, middleware.Use(middleware.StepPoison, middleware.Poison(middleware.PoisonConfig{})))
		})), `"poison" is inside "dedup"`},
		{"a step that is not there", fx.Options(fxmodule.Handle("x", nothing), fx.Decorate(func(s middleware.Stack) middleware.Stack {
			return s.Without("retries")
		})), `no step "retries"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := fx.New(quiet(), fxmodule.Module, c.options)
			require.ErrorContains(t, app.Err(), c.want)
		})
	}
}

type versionZero struct{}

func (versionZero) EventType() (string, int) { return "order.placed", 0 }

func TestConfig_ignoresKubernetesVariables(t *testing.T) {
	t.Setenv("LEAT_SERVICE_HOST", "10.0.0.1")
	t.Setenv("LEAT_PORT_80_TCP", "tcp://10.0.0.1:80")
	_, err := fxmodule.ConfigFromEnv()
	require.NoError(t, err)
}

func TestObserve_acceptsAnyType(t *testing.T) {
	registry := prometheus.NewRegistry()
	handled := make(chan struct{})
	app := fxtest.New(t, quiet(), fxmodule.Module,
		fx.Supply(fx.Annotate(registry, fx.As(new(prometheus.Registerer)))),
		fxmodule.Observe(prommetrics.New),
		fxmodule.Observe(func() bus.Observer { return middleware.Log(slog.New(slog.DiscardHandler)) }),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { close(handled); return nil }),
		fx.Invoke(func(b *bus.Bus) error { return b.Publish(context.Background(), orderPlaced{ID: "1"}) }))
	app.RequireStart()
	<-handled
	app.RequireStop()
	n, err := testutil.GatherAndCount(registry, "leat_deliveries_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// brokenFeed fails as a transport does that can't recover.
type brokenTransport struct{ bus.Transport }

func (b brokenTransport) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	feed, err := b.Transport.Subscribe(ctx, s)
	return brokenFeed{feed}, err
}

type brokenFeed struct{ driver.Receiver }

func (brokenFeed) Next(context.Context) (*driver.Delivery, error) {
	return nil, errors.New("the queue was deleted, and may not be made again")
}

func TestRun_failureExitsWithStatus1(t *testing.T) {
	t.Setenv("LEAT_URL", "broken://")
	app := fxtest.New(t, quiet(), fxmodule.Module,
		fxmodule.Transport(func(context.Context, *url.URL) (bus.Transport, error) {
			return brokenTransport{memory.New(memory.Config{})}, nil
		}, "broken"),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil }))
	app.RequireStart()
	select {
	case signal := <-app.Wait():
		require.Equal(t, 1, signal.ExitCode)
	case <-time.After(time.Minute):
		t.Fatal("the application went on")
	}
	require.ErrorContains(t, app.Stop(t.Context()), "the queue was deleted")
}

// lateTransport subscribes when its context ends, and signals that it is called.
type lateTransport struct {
	bus.Transport
	called func()
	gaveUp chan error
}

func (l lateTransport) Subscribe(ctx context.Context, _ driver.Subscription) (driver.Receiver, error) {
	l.called()
	<-ctx.Done()
	l.gaveUp <- ctx.Err()
	return nil, ctx.Err()
}

func TestStart_thatIsGivenUpEndsRun(t *testing.T) {
	t.Setenv("LEAT_URL", "late://")
	gaveUp := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	app := fx.New(quiet(), fxmodule.Module,
		fxmodule.Transport(func(context.Context, *url.URL) (bus.Transport, error) {
			return lateTransport{memory.New(memory.Config{}), cancel, gaveUp}, nil
		}, "late"),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil }))
	require.ErrorIs(t, app.Start(ctx), context.Canceled)
	select {
	case err := <-gaveUp:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(time.Minute):
		t.Fatal("Run goes on")
	}
}

func TestAnApplicationThatClosesItsBusItself_isNoFailure(t *testing.T) {
	var b *bus.Bus
	var log testenv.Buffer
	app := fxtest.New(t, fx.NopLogger, fxmodule.Module,
		fx.Provide(func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil }),
		fx.Populate(&b))
	app.RequireStart()
	require.NoError(t, b.Close(t.Context()))
	deadline := time.After(time.Minute)
	for !strings.Contains(log.String(), "the bus was stopped by the application") {
		select {
		case signal := <-app.Wait():
			t.Fatalf("the application was shut down with exit code %d: %s", signal.ExitCode, log.String())
		case <-deadline:
			t.Fatal(log.String())
		case <-time.After(time.Millisecond):
		}
	}
	require.NotContains(t, log.String(), "ERROR")
	app.RequireStop()
}

func TestDrain_endsWithinTheStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		interrupted := make(chan error, 1)
		inside := make(chan struct{})
		app := fxtest.New(t, quiet(), fx.StopTimeout(10*time.Second), fxmodule.Module,
			fxmodule.Handle("slow", func(ctx context.Context, _ orderPlaced) error {
				close(inside)
				<-ctx.Done()
				interrupted <- context.Cause(ctx)
				return ctx.Err()
			}),
			fx.Invoke(func(b *bus.Bus) error { return b.Publish(context.Background(), orderPlaced{ID: "1"}) }))
		app.RequireStart()
		<-inside
		app.RequireStop() // fails the test if it takes longer
		require.ErrorIs(t, <-interrupted, bus.ErrInterrupted)
	})
}

func TestAdmin_startsAndStopsWithTheApplication(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leat.sock")
	t.Setenv("LEAT_ADMIN", path)
	var log testenv.Buffer
	app := fxtest.New(t, fx.NopLogger, fxmodule.Module,
		fx.Provide(func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil }))
	app.RequireStart()
	require.Contains(t, log.String(), "url=unix://"+path)
	client, err := admin.Dial(t.Context(), &url.URL{Scheme: "unix", Path: path}, "")
	require.NoError(t, err)
	groups, err := client.Groups(t.Context())
	require.NoError(t, err)
	require.Len(t, groups, 1)
	require.Equal(t, []string{"order.placed", "order.placed.*"}, groups[0].Topics)
	require.NoError(t, client.Close(t.Context()))
	app.RequireStop()
	require.NoFileExists(t, path)
}

func TestModule_graphIsComplete(t *testing.T) {
	require.NoError(t, fx.ValidateApp(fxmodule.Module, fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil })))
}

func TestModule_keepsTheApplicationsLogger(t *testing.T) {
	var logger *slog.Logger
	app := fx.New(fx.NopLogger, fxmodule.Module, fx.Invoke(func(p struct {
		fx.In
		Logger *slog.Logger `optional:"true"`
	},
	) {
		logger = p.Logger
	}))
	require.NoError(t, app.Err())
	require.Nil(t, logger, "the module must not provide what it does not own")
}
