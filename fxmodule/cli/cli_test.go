package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/fxmodule/cli"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/sql"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"shop": shop}) }

type orderPaid struct {
	Order int `json:"order"`
}

func (orderPaid) EventType() (name string, version int) { return "order.paid", 1 }

// Validate refuses orders that can't be.
func (o orderPaid) Validate() error {
	if o.Order < 0 {
		return errors.New("order is negative")
	}
	return nil
}

type receiptSent struct{}

func (receiptSent) EventType() (name string, version int) { return "receipt.sent", 1 }

// shop is a service with the commands. Its effects are lines in a file.
func shop() {
	testenv.OutliveInterrupt()
	cli.Main(
		fxmodule.Module,
		fx.Provide(newStock),
		fxmodule.HandleFunc(func(b *bus.Bus, s *stock) bus.Handler {
			return handlers.Tx("ledger", notebook{}, func(ctx context.Context, tx *bytes.Buffer, e orderPaid) error {
				fmt.Fprintln(tx, "booked", e.Order, "of", s.connection.items)
				if e.Order == 2 {
					return &outOfStockError{}
				}
				return b.Publish(ctx, receiptSent{})
			})
		}),
		fxmodule.Handle("mail", func(ctx context.Context, e orderPaid) error {
			if bus.IsDryRun(ctx) {
				return nil
			}
			return note(fmt.Sprintln("mailed", e.Order))
		}),
		fx.Invoke(func(b *bus.Bus) error { return prommetrics.Groups(prometheus.NewRegistry(), b) }), // as the documentation shows
		fx.Invoke(func(lc fx.Lifecycle, b *bus.Bus) {
			lc.Append(fx.StartHook(func(ctx context.Context) error { return b.Publish(ctx, orderPaid{Order: 99}) }))
		}),
	)
}

// stock is a dependency of the ledger. It works between start and stop.
type stock struct{ connection *struct{ items int } }

func newStock(lc fx.Lifecycle) *stock {
	s := &stock{}
	lc.Append(fx.StartStopHook(func() error {
		if os.Getenv("SHOP_PORT") == "taken" {
			return errors.New("listen on :80: address already in use")
		}
		s.connection = &struct{ items int }{100}
		return write("SHOP_HOOKS", "started\n")
	}, func() error { return write("SHOP_HOOKS", "stopped\n") }))
	return s
}

type outOfStockError struct{}

func (*outOfStockError) Error() string { return "out of stock" }

// notebook is an inbox whose transactions are written to a file when they commit.
type notebook struct{}

func (notebook) Once(ctx context.Context, _, _ string, fn func(context.Context, *bytes.Buffer) error) (seen bool, err error) {
	var tx bytes.Buffer
	if err := fn(ctx, &tx); err != nil {
		return false, err
	}
	return false, note(tx.String())
}

func note(line string) error { return write("SHOP_EFFECTS", line) }

// write adds a line to the file that a variable names.
func write(variable, line string) error {
	file, err := os.OpenFile(os.Getenv(variable), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(line)
	return errors.Join(err, file.Close())
}

// systems returns message systems. A test must use a unique service name.
func systems() map[string]func(t *testing.T) string {
	prefixed := func(t *testing.T, raw, option string) string {
		u, err := url.Parse(raw)
		require.NoError(t, err)
		q := u.Query()
		q.Set(option, fmt.Sprintf("t%08x_", rand.Uint32()))
		u.RawQuery = q.Encode()
		return u.String()
	}
	return map[string]func(t *testing.T) string{
		"postgres": onPostgres,
		"sqlite":   func(t *testing.T) string { return "sqlite://" + filepath.Join(t.TempDir(), "bus.db") },
		"rabbitmq": func(t *testing.T) string {
			return prefixed(t, testenv.ManagedRabbitMQ(t), "exchange") + "&queue=classic"
		},
	}
}

// onPostgres returns a URL with a new schema.
func onPostgres(t *testing.T) string {
	u, err := url.Parse(testenv.Postgres(t))
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	schema := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	_, err = db.ExecContext(t.Context(), "CREATE SCHEMA "+schema)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), "DROP SCHEMA "+schema+" CASCADE")
		require.NoError(t, errors.Join(err, db.Close()))
	})
	q := u.Query()
	q.Set("schema", schema)
	u.RawQuery = q.Encode()
	return u.String()
}

func TestDryRun_leavesEverythingAsItIs(t *testing.T) {
	for name, system := range systems() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, system(t))
			before := w.snapshot()
			out, status := w.shop("poison", "replay", "--dry-run", "--json", "--group", w.group("ledger"))
			require.Equal(t, 0, status, out)
			require.Equal(t, strings.ReplaceAll(`{"group":"SVC.ledger","class":"card declined","count":3,"would_succeed":1,"would_publish":1,`+
				`"now_fails_with":["*cli_test.outOfStockError","*json.SyntaxError"],"sample":"decode order.paid.v1: invalid character 'x' looking for beginning of value"}`+"\n",
				"SVC", w.service), out)
			out, status = w.shop("poison", "replay", "--dry-run", "--group", w.group("mail"))
			require.Equal(t, 2, status)
			require.Contains(t, out, w.group("mail")+" does outside of its context and of handlers.Tx happens, and can't be undone")
			require.Contains(t, out, "Pass --yes if there is no terminal")
			out, status = w.shop("poison", "replay", "--dry-run", "--yes", "--all")
			require.Equal(t, 0, status, out)
			require.Contains(t, out, "3 of 6 messages would now succeed, and 1 message would be published; nothing was moved")
			require.Equal(t, before, w.snapshot(), "every queue is as it was")
			require.NoFileExists(t, w.effects)
			hooks, err := os.ReadFile(w.hooks)
			require.NoError(t, err)
			require.Equal(t, strings.Repeat("started\nstopped\n", 2), string(hooks), "not where nobody agreed")

			out, status = w.shop("poison", "ls", "--group", w.group("ledgr"))
			require.Equal(t, 2, status)
			require.Contains(t, out, "Did you mean "+w.group("ledger")+"?")
			out, status = w.shop("poison", "replay", "--group", w.group("ledger"), "--text", "declined")
			require.Equal(t, 0, status)
			require.Equal(t, "replayed 3 messages\n", out)
		})
	}
}

func TestMain_refusesArgumentsThatAreNoVerb(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	out, status := w.shop("poisn", "ls")
	require.Equal(t, 2, status, out)
	require.Contains(t, out, `did you mean "poison"?`)
	out, status = w.shop("--port=80")
	require.Equal(t, 2, status, out)
	out, status = w.shop("--help")
	require.Equal(t, 0, status, out)
	require.Contains(t, out, "poison stats")
	require.NoFileExists(t, w.hooks, "the service did not start")
}

// TestDryRun_withoutTheServicesStart checks --no-start, for a service that can't start twice on a machine: only
// handlers whose dependencies are missing fail.
func TestDryRun_withoutTheServicesStart(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	before := w.snapshot()
	t.Setenv("SHOP_PORT", "taken")
	out, status := w.shop("poison", "replay", "--dry-run", "--group", w.group("ledger"))
	require.Equal(t, 1, status)
	require.Contains(t, out, "the service does not start, so nothing was tried; with --no-start it is tried without its start hooks: listen on :80: address already in use")
	out, status = w.shop("poison", "replay", "--dry-run", "--no-start", "--json", "--group", w.group("ledger"))
	require.Equal(t, 0, status, out)
	require.Contains(t, out, `"count":3,"would_succeed":0,"would_publish":0,"now_fails_with":["*json.SyntaxError","panic(runtime.errorString)"]`)
	require.Equal(t, before, w.snapshot())
	require.NoFileExists(t, w.hooks)
	require.NoFileExists(t, w.effects)
}

// TestGroupsPause_reachesTheRunningProcess pauses a group of a process of the service by its admin endpoint.
func TestGroupsPause_reachesTheRunningProcess(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	out, status := w.shop("groups", "pause", w.group("mail"))
	require.Equal(t, 2, status, out)
	require.Contains(t, out, "start it with LEAT_ADMIN=/run/shop/leat.sock, and run this command with the same LEAT_ADMIN on its machine")

	socket := filepath.Join(t.TempDir(), "s")
	t.Setenv("LEAT_ADMIN", socket)
	out, status = w.shop("groups", "pause", w.group("mail"))
	require.Equal(t, 1, status, out)
	require.Contains(t, out, "groups pause: unix://"+socket+": ")
	require.Contains(t, out, "is a process of the service running here, with the same LEAT_ADMIN?")
	require.NotContains(t, out, "doctor")

	stop := w.start()
	out, status = w.shop("groups", "pause", w.group("mail"))
	require.Equal(t, 0, status, out)
	require.Equal(t, "paused "+w.group("mail")+" in this process; other processes of the group go on as before\n", out)
	u, err := url.Parse("unix://" + socket)
	require.NoError(t, err)
	process, err := admin.Dial(w.patience(), u, "")
	require.NoError(t, err)
	groups, err := admin.FindGroups(w.patience(), process, w.group("mail"), w.group("ledger"))
	require.NoError(t, err)
	require.Equal(t, driver.PausedByOperator, groups[0].Paused)
	require.Empty(t, groups[1].Paused)

	away := *w
	away.url = "postgres://127.0.0.1:1/db"
	out, status = away.shop("groups", "resume", "--json", w.group("mail"))
	require.Equal(t, 0, status, out)
	require.Equal(t, `{"group":"`+w.group("mail")+`","result":"resumed"}`+"\n", out, "the message system may be away")
	groups, err = admin.FindGroups(w.patience(), process, w.group("mail"))
	require.NoError(t, err)
	require.Empty(t, groups[0].Paused)
	require.NoError(t, process.Close(w.patience()))

	out, status = w.shop("groups", "pause", w.group("mial"))
	require.Equal(t, 2, status, out)
	require.Contains(t, out, "Did you mean "+w.group("mail")+"?")
	stop()
	t.Setenv("LEAT_ADMIN", "127.0.0.1:7070")
	out, status = w.shop("groups", "pause", w.group("mail"))
	require.Equal(t, 2, status, out)
	require.Contains(t, out, "LEAT_ADMIN: admin address \"127.0.0.1:7070\" is open to every user of this machine")
	t.Setenv("LEAT_ADMN", socket)
	out, status = w.shop("groups", "pause", w.group("mail"))
	require.Equal(t, 1, status, out)
	require.Contains(t, out, "Did you mean LEAT_ADMIN?")
}

// start starts the service with an admin endpoint and returns what stops it.
func (w *world) start() (stop func()) {
	cmd := exec.CommandContext(w.patience(), "shop")
	cmd.Env = w.environ()
	log, err := cmd.StderrPipe() // ends with the process
	require.NoError(w, err)
	require.NoError(w, cmd.Start())
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "leat: admin endpoint") {
		w.Log(lines.Text())
	}
	require.NoError(w, lines.Err())
	require.Contains(w, lines.Text(), "leat: admin endpoint")
	rest := make(chan struct{})
	go func() {
		defer close(rest)
		_, _ = io.Copy(io.Discard, log) // until the process has ended
	}()
	return func() {
		require.NoError(w, testenv.Interrupt(cmd))
		<-rest
	}
}

func TestConsole_servesTheConfiguredTransport(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	cmd := exec.CommandContext(w.patience(), "shop", "console")
	cmd.Env = w.environ()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	address, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(w.patience(), http.MethodGet, strings.TrimSpace(address), nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	page, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	http.DefaultClient.CloseIdleConnections()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, string(page), w.group("ledger"))
	require.NoError(t, testenv.Interrupt(cmd))
	require.NoFileExists(t, w.hooks, "the service did not start")
}

// A transport in memory is inside the running process, so the commands ask that.
func TestMemory_commandsAskTheRunningProcess(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	w.url = "memory://"
	for _, command := range []string{"groups", "topics", "poison stats", "console", "doctor"} {
		out, status := w.shop(strings.Fields(command)...)
		require.NotZero(t, status, out)
		require.Contains(t, out, "this transport is inside the service's process, which has no admin endpoint: start it with LEAT_ADMIN=", command)
	}
	out, status := w.shop("describe")
	require.Zero(t, status, out)
	require.Contains(t, out, w.group("mail"))

	socket := filepath.Join(t.TempDir(), "s")
	t.Setenv("LEAT_ADMIN", socket)
	out, status = w.shop("groups")
	require.Equal(t, 1, status, out)
	require.Contains(t, out, "is a process of the service running here, with the same LEAT_ADMIN?")
	stop := w.start()
	defer stop()
	out, status = w.shop("groups", "--json", w.group("mail"))
	require.Zero(t, status, out)
	require.Contains(t, out, `"consumers":1`)
	out, status = w.shop("doctor")
	require.Zero(t, status, out)
	require.Contains(t, out, "group "+w.group("mail")+": 1 consumer, 0 waiting, 0 poisoned")
	out, status = w.shop("publish", "--type", "order.paid.v1", "--data", "x")
	require.Equal(t, 2, status, out)
	for _, data := range []string{`{"order":-1}`, `{"order":"x"}`} {
		out, status = w.shop("publish", "--type", "order.paid.v1", "--data", data)
		require.Equal(t, 2, status, out)
		require.Contains(t, out, "would refuse it: ")
		require.Contains(t, out, "nothing was published")
	}
	u := &url.URL{Scheme: "unix", Path: socket}
	process, err := admin.Dial(w.patience(), u, "")
	require.NoError(t, err)
	bad := message.NewMessage("bad", []byte(`{"order":"x"}`))
	bad.Metadata = message.Metadata{driver.HeaderType: "order.paid.v1"}
	require.ErrorContains(t, process.Publish(w.patience(), "order.paid.v1", bad), "would refuse it: ")
	driver.Fault{Text: "it failed", Class: "test", Topic: "order.paid.v1", At: time.Now()}.Set(bad.Metadata)
	require.NoError(t, process.PoisonQueue(w.group("mail")).Put(w.patience(), driver.PoisonedMessage{Message: bad}))
	require.NoError(t, process.Close(w.patience()))
	require.Eventually(t, func() bool {
		out, _ = w.shop("poison", "stats", "--group", w.group("mail"))
		return strings.Contains(out, "order.paid.v1")
	}, time.Minute, 10*time.Millisecond)
	out, status = w.shop("poison", "replay", "--dry-run", "--group", w.group("mail"), "--yes")
	require.Zero(t, status, out)
	require.Contains(t, out, "0 of 1 message would now succeed")
}

func TestMain_printsItsVersion(t *testing.T) {
	w := newWorld(t, "sqlite://"+filepath.Join(t.TempDir(), "bus.db"))
	out, status := w.shop("--version")
	require.Zero(t, status, out)
	require.Regexp(t, `^shop \S`, out)
}

// world is a message system on which the shop has failed.
type world struct {
	*testing.T
	url, service, effects, hooks string
	transport                    bus.Transport
}

func newWorld(t *testing.T, address string) *world {
	w := &world{T: t, url: address, service: fmt.Sprintf("shop%08x", rand.Uint32()), effects: filepath.Join(t.TempDir(), "effects"), hooks: filepath.Join(t.TempDir(), "hooks")}
	var err error
	w.transport, err = transports.Open(w.patience(), address)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, w.transport.Close(w.patience()))
		testenv.Forget(t, address, w.group("ledger"), w.group("mail"))
	})
	for _, handler := range []string{"ledger", "mail"} {
		feed, err := w.transport.Subscribe(w.patience(), driver.Subscription{Group: w.group(handler), Topics: []string{"order.paid.*", "order.paid"}, Concurrency: 1})
		require.NoError(t, err)
		var msgs []bus.PoisonedMessage
		for i, payload := range []string{`{"order":1}`, `{"order":2}`, `x`} {
			msg := message.NewMessage(fmt.Sprintf("e-%d", i), []byte(payload))
			msg.Metadata = message.Metadata{driver.HeaderID: msg.UUID, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop"}
			d := &bus.Delivery{Delivery: driver.Delivery{Message: msg, Topic: "order.paid.v1", Group: w.group(handler), Attempt: 8}}
			driver.NewFault(&d.Delivery, errors.New("card declined")).Set(msg.Metadata)
			msgs = append(msgs, bus.PoisonedMessage{Message: msg})
		}
		require.NoError(t, w.transport.PoisonQueue(w.group(handler)).Put(w.patience(), msgs...))
		require.NoError(t, feed.Close(w.patience()))
	}
	return w
}

func (w *world) group(handler string) string { return w.service + "." + handler }

func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	w.Cleanup(cancel)
	return ctx
}

// shop runs the service's binary and returns what it wrote, and its exit status.
func (w *world) shop(args ...string) (output string, status int) {
	cmd := exec.CommandContext(w.patience(), "shop", args...)
	cmd.Env = w.environ()
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	require.NoError(w, err)
	return string(out), 0
}

func (w *world) environ() []string {
	return append(os.Environ(), "LEAT_URL="+w.url, "LEAT_SERVICE="+w.service, "SHOP_EFFECTS="+w.effects, "SHOP_HOOKS="+w.hooks, "GORACE=atexit_sleep_ms=0")
}

// snapshot returns all messages of the groups.
func (w *world) snapshot() any {
	type poisoned struct {
		id, uuid string
		headers  message.Metadata
		payload  string
	}
	all := make(map[string]any)
	groups, err := w.transport.(driver.Inspector).Groups(w.patience())
	require.NoError(w, err)
	for _, g := range groups {
		if !strings.HasPrefix(g.Name, w.service) {
			continue
		}
		list, err := w.transport.PoisonQueue(g.Name).List(w.patience(), "", 100)
		require.NoError(w, err)
		var queue []poisoned
		for _, m := range list {
			queue = append(queue, poisoned{m.ID, m.Message.UUID, m.Message.Metadata, string(m.Message.Payload)})
		}
		all[g.Name+" poisoned"], all[g.Name] = queue, g
	}
	require.Len(w, all, 4)
	return all
}

func TestImports_moduleDoesNotLinkTheCommands(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", "github.com/leatbus/leat/fxmodule").Output()
	require.NoError(t, err)
	require.Contains(t, string(deps), "go.uber.org/fx\n")
	require.NotContains(t, string(deps), "alecthomas/kong")
	require.NotContains(t, string(deps), "internal/cli")
}

func TestRun_leavesOtherArgumentsToTheService(t *testing.T) {
	for _, args := range [][]string{nil, {"--port", "80"}, {"migrate"}} {
		_, ok := cli.Run(t.Context(), args)
		require.False(t, ok)
	}
}
