package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/amqp"
)

// systems returns the message systems that the command line supports. Each returns URLs of buses that share
// no messages; the groups' names must still be unique.
func systems() map[string]func(t *testing.T) (bus func() string) {
	tables := func(database func(*testing.T) string) func(*testing.T) func() string {
		return func(t *testing.T) func() string {
			at := database(t)
			return func() string { return testenv.WithOption(t, at, "prefix", unique()[len("leat_"):]) }
		}
	}
	queues := func(kind string) func(*testing.T) func() string {
		return func(t *testing.T) func() string {
			testenv.ManagedRabbitMQ(t) // skips t, and not a script, where there is none
			// The doctor of one script must not see the groups of another while they are being declared.
			return func() string { return testenv.WithOption(t, testenv.RabbitMQVhost(t), "queue", kind) }
		}
	}
	return map[string]func(*testing.T) func() string{
		"postgres": tables(onPostgres),
		"mysql":    tables(onMySQL),
		"sqlite":   tables(onSQLite),
		"quorum":   queues("quorum"),
		"classic":  queues("classic"),
	}
}

// TestBus runs the same sessions against every message system.
func TestBus(t *testing.T) {
	all := systems()
	inMemory := func(*testing.T) func() string { return func() string { return "memory://" } }
	all["memory"], all["socket"] = inMemory, inMemory
	for name, system := range all {
		t.Run(name, func(t *testing.T) {
			another := system(t)
			testscript.Run(t, testscript.Params{
				Dir:  "testdata/bus",
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"same": same},
				Setup: func(e *testscript.Env) error {
					at := another()
					s := serve(t, e.Defer, at)
					switch name {
					case "memory":
						at = s.admin(e.Defer, "127.0.0.1:0", "s3cret-0123456789")
						e.Setenv("LEAT_ADMIN_TOKEN", "s3cret-0123456789")
					case "socket":
						at = s.admin(e.Defer, filepath.Join(t.TempDir(), "s"), "")
					}
					e.Setenv("LEAT_URL", at)
					e.Setenv("SVC", s.name)
					return setup(e)
				},
			})
		})
	}
}

// service is another process on the bus. It has two groups; one has failed with three of its six
// messages.
type service struct {
	t         *testing.T
	name      string
	transport bus.Transport
	ledger    driver.Receiver
}

var errDeclined = errors.New("card declined")

func serve(t *testing.T, atEnd func(func()), address string) *service {
	s := &service{t: t, name: unique()}
	ctx := patience(t)
	var err error
	s.transport, err = transports.Open(ctx, address)
	require.NoError(t, err)
	atEnd(func() {
		require.NoError(t, s.transport.Close(patience(t)))
		testenv.Forget(t, address, s.group("ledger"), s.group("mail"))
	})
	s.ledger = s.subscribe("ledger", "order.paid.v1")
	mail := s.subscribe("mail", "order.*.*")

	var syntax any
	malformed := fmt.Errorf("decode order.paid.v1: %w", json.Unmarshal([]byte("{"), &syntax))
	for i := range 6 {
		s.publish(i)
		d, err := s.ledger.Next(ctx)
		require.NoError(t, err)
		d.Attempt = 8
		switch i {
		case 0, 1:
			require.NoError(t, d.Settler.Poison(ctx, driver.NewFault(d, errDeclined)))
		case 2:
			require.NoError(t, d.Settler.Poison(ctx, driver.NewFault(d, malformed)))
		default:
			require.NoError(t, d.Settler.Ack())
		}
		d, err = mail.Next(ctx)
		require.NoError(t, err)
		require.NoError(t, d.Settler.Ack())
	}
	require.Eventually(t, func() bool { // acks are carried out later
		groups, err := s.transport.(driver.Inspector).Groups(ctx)
		if err != nil { // the broker may be busy
			return false
		}
		for _, g := range groups {
			if strings.HasPrefix(g.Name, s.name) && (g.Waiting > 0 || g.InFlight > 0 || g.Consumers == 0) {
				return false
			}
		}
		return true
	}, long, 5*time.Millisecond)
	s.awaitCounts(address)
	return s
}

// awaitCounts waits until the management API of RabbitMQ has the counts, which it gets every five seconds.
func (s *service) awaitCounts(address string) {
	u, err := url.Parse(address)
	require.NoError(s.t, err)
	if u.Scheme != amqp.Scheme {
		return
	}
	operator, err := openAMQP(patience(s.t), u)
	require.NoError(s.t, err)
	poisoned := map[string]int{s.group("ledger"): 3, s.group("mail"): 0}
	require.Eventually(s.t, func() bool {
		groups, err := operator.(driver.Inspector).Groups(patience(s.t))
		found := 0
		for _, g := range groups {
			n, mine := poisoned[g.Name]
			if mine && g.Waiting == 0 && g.Consumers == 1 && g.Poisoned == n {
				found++
			}
		}
		return err == nil && found == len(poisoned)
	}, long, 50*time.Millisecond)
	require.NoError(s.t, operator.Close(patience(s.t)))
}

// admin opens the admin endpoint of a transport in memory.
func (s *service) admin(atEnd func(func()), at, token string) (address string) {
	b, err := bus.New(s.transport, bus.Config{Service: s.name})
	require.NoError(s.t, err)
	server, err := admin.Endpoint{Addr: at, Token: token, Bus: b, Logger: slog.New(slog.DiscardHandler)}.Start(patience(s.t))
	require.NoError(s.t, err)
	atEnd(func() { require.NoError(s.t, server.Stop(patience(s.t))) })
	return server.URL()
}

func (s *service) group(handler string) string { return s.name + "." + handler }

func (s *service) subscribe(handler string, topics ...string) driver.Receiver {
	feed, err := s.transport.Subscribe(patience(s.t), driver.Subscription{Group: s.group(handler), Topics: topics, Known: topics, Concurrency: 1})
	require.NoError(s.t, err)
	return feed
}

func (s *service) publish(i int) {
	id := fmt.Sprintf("e-%d", i+1)
	msg := message.NewMessage(id, fmt.Appendf(nil, `{"order":%d}`, i+1))
	msg.Metadata = message.Metadata{
		driver.HeaderID: id, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop", driver.HeaderTime: "2026-01-02T15:04:05Z",
		driver.HeaderPartitionKey: fmt.Sprintf("k-%d", i%2),
	}
	require.NoError(s.t, s.transport.Publish(patience(s.t), "order.paid.v1", msg))
}

// long is how long a test waits for an event. It is long, because the machine may be busy.
const long = 5 * time.Minute

func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), long)
	t.Cleanup(cancel)
	return ctx
}

// same compares the standard output with a file. It ignores what differs in each run: the service's name,
// ids in queues, ages, and the width of columns.
func same(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 2 {
		ts.Fatalf("usage: same stdout file")
	}
	have, want := normal(ts, ts.ReadFile(args[0])), normal(ts, ts.ReadFile(args[1]))
	if have != want {
		ts.Fatalf("%s is\n%s\nand %s has\n%s", args[0], have, args[1], want)
	}
}

func normal(ts *testscript.TestScript, text string) string {
	text = strings.ReplaceAll(text, ts.Getenv("SVC"), "SVC")
	for _, r := range []struct{ pattern, with string }{
		{`(?m)^\S+( +SVC\.\S+ +e-)`, "ID$1"},                       // a row of ls
		{`"id":"[^"]+"`, `"id":"ID"`},                              //
		{`(changed|replayed) \S+\n`, "$1 ID\n"},                    //
		{`\d{4}-\d\d-\d\dT[0-9:.]+Z`, "TIME"},                      //
		{`"host":"[^"]*","pid":\d+,"build":"[^"]*"`, `"host":"…"`}, //
		{`\b(\d+s|\d+m\d\ds)\b`, "AGE"},                            //
		{`\?`, "0"},                                                // RabbitMQ can't tell
		{` +`, " "},
		{`(?m) +$`, ""},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	return text
}
