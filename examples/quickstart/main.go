// Command quickstart reads events, publishes them, handles them with plain functions, and ends with a report
// of the outcome of every message.
//
//	go run ./examples/quickstart                      about 1,000 included events
//	go run ./examples/quickstart -input FILE          CloudEvents 1.0, structured JSON, one a line
//	… | go run ./examples/quickstart -input - -json   from a pipe, with one JSON object at the end
//
// LEAT_URL is the URL of the transport (by default memory://), LEAT_REDIS_URL the URL of a Redis for the dedup store
// (by default in memory), LEAT_SERVICE the name of the service (by default quickstart).
//
// Ctrl-C stops reading and ends the run in order; a second one ends it at once. The exit status is 0 exactly
// when nothing was lost, 1 when something was, and 2 when the run could not start.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // the reader of the output may end early, as head does; the run must not
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go obey(signals, stop, func() { os.Exit(130) })
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// sameStroke is the time within which several signals count as one. timeout(1), for example, sends its signal twice.
const sameStroke = 500 * time.Millisecond

// obey calls stop at the first signal, and quit at the next one that is not a repetition.
func obey(signals <-chan os.Signal, stop, quit func()) {
	<-signals
	stop()
	for first := time.Now(); time.Since(first) < sameStroke; {
		<-signals
	}
	quit()
}

// run runs the program and returns its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	s, err := readSettings(ctx, args, stdin, stderr, env)
	if err != nil {
		return couldNotStart(stderr, err)
	}
	defer s.close()
	return play(ctx, s, newScreen(s.json, stdout, stderr, env))
}

// play creates a bus, publishes the input and reports the outcomes.
func play(ctx context.Context, s settings, view *screen) int {
	b, err := newBus(ctx, s, view)
	if err != nil {
		return couldNotStart(view.stderr, err)
	}
	view.begin(b, s)
	r, err := process(ctx, b, s, view)
	return view.end(r, err)
}

// newBus wires a transport, the default stack, and three plain functions.
func newBus(ctx context.Context, s settings, view *screen) (*bus.Bus, error) {
	transport, err := transports.Open(ctx, s.url)
	if err != nil {
		return nil, fmt.Errorf("LEAT_URL: %w", err)
	}
	stack := middleware.Standard(middleware.Config{
		Store:     s.store,
		Dedup:     s.dedup(view.logger()),
		Retry:     retries(),
		HoldNewer: -1, // no newer version of this program will run, and the report must end
		Upcasters: upcasters(),
	})
	b, err := bus.New(transport, bus.Config{
		Service:    s.service,
		Stack:      stack.Before(middleware.StepDedup, middleware.Use("leftovers", leftovers)),
		Breaker:    bus.NoBreaker(), // some inputs hold nothing but bad payments, and the account must end
		Observers:  []bus.Observer{view},
		Logger:     view.logger(),
		MaxPayload: maxLine,
	})
	if err != nil {
		return nil, errors.Join(err, transport.Close(ctx))
	}
	for _, h := range []bus.Handler{
		handlers.Func("reserve-stock", ReserveStock, handlers.OrderedByKey(), handlers.WithoutParking()),
		handlers.Func("book-payment", BookPayment, handlers.OrderedByKey(), handlers.WithoutParking()),
		handlers.Raw("audit", []string{"order.>"}, Audit),
	} {
		if err := b.Handle(h); err != nil {
			return nil, errors.Join(err, b.Close(ctx))
		}
	}
	return b, nil
}
