package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
)

//go:generate go run ./gen

//go:embed events.ndjson
var defaultEvents []byte

// settings has the options of a run, and what was opened for them.
type settings struct {
	json    bool
	url     string // of the transport
	redis   string // URL of the dedup store; "" means in memory
	service string
	input   io.Reader
	source  string // a description of the input
	store   middleware.Store
	run     string // a unique id; see leftovers
	closers []io.Closer

	patience time.Duration // how long may pass without an outcome of any message
}

func readSettings(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer, env func(string) string) (settings, error) {
	s := settings{
		url:     cmp.Or(env("LEAT_URL"), "memory://"),
		redis:   env("LEAT_REDIS_URL"),
		service: cmp.Or(env("LEAT_SERVICE"), "quickstart"),
		run:     bus.NewID(),

		patience: time.Minute,
	}
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("input", "", "`FILE` of CloudEvents 1.0 in structured JSON, one a line; - is standard input;\nwithout it, the events that come with this program. Blank lines are skipped.")
	flags.BoolVar(&s.json, "json", false, "print one JSON object at the end, and nothing else but errors")
	if err := flags.Parse(args); err != nil {
		return s, errUsage{err}
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("%q is one argument too many; a file goes behind -input", flags.Arg(0))
	}
	if err := s.openInput(*path, stdin); err != nil {
		return s, err
	}
	if err := s.openStore(ctx); err != nil {
		s.close()
		return s, fmt.Errorf("LEAT_REDIS_URL: %w", err)
	}
	return s, nil
}

// errUsage is an error that package flag has already printed.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

func couldNotStart(stderr io.Writer, err error) int {
	var usage errUsage
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitFine
	case !errors.As(err, &usage):
		fmt.Fprintln(stderr, "quickstart:", err)
	}
	return exitNotStarted
}

func (s *settings) openInput(path string, stdin io.Reader) error {
	switch path {
	case "":
		s.input, s.source = bytes.NewReader(defaultEvents), "the events that come with it"
		return nil
	case "-":
		s.input, s.source = stdin, "standard input"
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("-input: %w", err)
	}
	s.closers = append(s.closers, file)
	if info, err := file.Stat(); err == nil && info.IsDir() {
		s.close()
		return fmt.Errorf("-input: %s is a directory", path)
	}
	s.input, s.source = file, path
	return nil
}

// storeAnswers is the timeout for the first call of the dedup store.
const storeAnswers = 5 * time.Second

// openStore opens the dedup store, and checks that it can be reached.
func (s *settings) openStore(ctx context.Context) error {
	if s.redis == "" {
		s.store = middleware.NewMemoryStore(0)
		return nil
	}
	store, err := redisstore.Open(s.redis)
	if err != nil {
		return err
	}
	s.store, s.closers = store, append(s.closers, store)
	ctx, cancel := context.WithTimeout(ctx, storeAnswers)
	defer cancel()
	claim, err := store.Claim(ctx, s.namespace()+"start", time.Second)
	if err != nil {
		return err
	}
	return store.Release(ctx, claim)
}

// dedup returns a configuration with exact counts on a shared store: a run uses its own keys, and messages wait while
// the store is slow or can't be reached.
func (s *settings) dedup(logger *slog.Logger) middleware.DedupConfig {
	return middleware.DedupConfig{
		Namespace: s.namespace(),
		Keep:      time.Hour,
		Mode:      bus.DedupClosed,
		Budget:    5 * time.Second,
		Logger:    logger,
	}
}

func (s *settings) namespace() string { return s.service + ":" + s.run + ":" }

// leftovers is a step of the stack that discards messages of an earlier, killed run of this program. They are in the
// queues of a durable transport, because both runs have the same groups, but they must not be counted in this
// run's report.
func leftovers(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if !bus.DeliveryFrom(msg.Context()).Own() {
			return nil, bus.Discard(errors.New("it is from an earlier run"))
		}
		return next(msg)
	}
}

func (s *settings) close() {
	for _, c := range s.closers {
		_ = c.Close() // a file that was read, or a client that is no longer needed
	}
}
