// Package failing tests what happens when handlers fail, on every transport. Each behaviour has one small scenario,
// whose result is a short text. The texts are in one table, and must be the same on every transport.
package failing_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-sql-driver/mysql"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/memory"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long a test waits for an event.
const patience = 5 * time.Minute

// system is a message system for one test.
type system struct {
	url  string
	open func(t testing.TB) driver.Transport // as another process would
	// takePoisonAway makes a group's poison queue unreachable, and what it returns gives it back.
	takePoisonAway func(t testing.TB, transport driver.Transport, group string) (giveBack func())
}

// systems has all message systems, by their names in the table.
var systems = []struct {
	name string
	make func(t testing.TB, service string) system
}{
	{"memory", onMemory},
	{"RabbitMQ, quorum", func(t testing.TB, _ string) system { return onRabbitMQ(t, "quorum") }},
	{"RabbitMQ, classic", func(t testing.TB, _ string) system { return onRabbitMQ(t, "classic") }},
	{"PostgreSQL", onPostgres},
	{"MariaDB", onMariaDB},
	{"SQLite", onSQLite},
}

// onMemory has one transport for all processes, which closes with the last of them.
func onMemory(testing.TB, string) system {
	var mu sync.Mutex
	var world *memory.Transport
	users := 0
	return system{
		open: func(testing.TB) driver.Transport {
			mu.Lock()
			defer mu.Unlock()
			if users++; users == 1 {
				world = memory.New(memory.Config{PoisonBytes: 64 << 10})
			}
			return &shared{world, sync.OnceValue(func() bool {
				mu.Lock()
				defer mu.Unlock()
				users--
				return users == 0
			})}
		},
		takePoisonAway: func(t testing.TB, transport driver.Transport, group string) func() {
			queue := transport.PoisonQueue(group) // nobody can take a process's memory away: it is full
			for size := 32 << 10; size > 0; size /= 2 {
				for {
					filler := message.NewMessage("filler", make([]byte, size))
					filler.Metadata = message.Metadata{driver.HeaderType: "filler.v1", driver.HeaderFaultTopic: "filler.v1"}
					if queue.Put(t.Context(), driver.PoisonedMessage{Message: filler}) != nil {
						break
					}
				}
			}
			return func() {
				list, err := queue.List(context.Background(), "", 10_000)
				require.NoError(t, err)
				for _, m := range list {
					if m.Message.UUID == "filler" {
						_, err := queue.Drop(context.Background(), m.ID)
						require.NoError(t, err)
					}
				}
			}
		},
	}
}

// shared is one process's view of a transport that ends with its last user.
type shared struct {
	*memory.Transport
	last func() bool
}

func (s *shared) Close(ctx context.Context) error {
	if s.last() {
		return s.Transport.Close(ctx)
	}
	return nil
}

func onRabbitMQ(t testing.TB, queue string) system {
	broker := testenv.RabbitMQ(t)
	conn, err := rabbit.Dial(broker)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	withChannel := func(do func(*rabbit.Channel)) {
		ch, err := conn.Channel()
		require.NoError(t, err)
		defer func() { _ = ch.Close() }()
		do(ch)
	}
	var mu sync.Mutex
	groups := map[string]bool{}
	exchange := unique("failing") // others publish the same topics
	s := system{url: testenv.WithOption(t, testenv.WithOption(t, broker, "queue", queue), "exchange", exchange)}
	s.open = func(t testing.TB) driver.Transport {
		return &noting{Transport: dial(t, s.url), note: func(group string) {
			mu.Lock()
			defer mu.Unlock()
			groups[group] = true
		}}
	}
	t.Cleanup(func() { testenv.Forget(t, s.url, slices.Collect(maps.Keys(groups))...) })
	s.takePoisonAway = func(t testing.TB, _ driver.Transport, group string) func() {
		name := group + ".poison"
		withChannel(func(ch *rabbit.Channel) {
			_, err := ch.QueueDelete(name, false, false, false)
			require.NoError(t, err)
			// One that refuses everything stands in its place.
			_, err = ch.QueueDeclare(name, true, false, false, false, rabbit.Table{"x-max-length": 0, "x-overflow": "reject-publish"})
			require.NoError(t, err)
		})
		return func() {
			withChannel(func(ch *rabbit.Channel) { // the transport makes its own again
				_, err := ch.QueueDelete(name, false, false, false)
				require.NoError(t, err)
			})
		}
	}
	return s
}

// noting calls a function for every group that subscribes.
type noting struct {
	driver.Transport
	note func(group string)
}

func (n *noting) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	n.note(s.Group)
	return n.Transport.Subscribe(ctx, s)
}

func onPostgres(t testing.TB, service string) system {
	raw := testenv.Postgres(t)
	db := database(t, "pgx", raw)
	execute(t, db, `CREATE SCHEMA `+service)
	t.Cleanup(func() { execute(t, db, `DROP SCHEMA `+service+` CASCADE`) })
	return onSQL(testenv.WithOption(t, raw, "schema", service), db, []string{
		`CREATE FUNCTION ` + service + `.leat_away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the poison queue is away'; END $$`,
		`CREATE TRIGGER leat_away BEFORE UPDATE ON ` + service + `.leat_messages FOR EACH ROW WHEN (NEW.state = 2) EXECUTE FUNCTION ` + service + `.leat_away()`,
	}, []string{`DROP FUNCTION ` + service + `.leat_away() CASCADE`})
}

func onMariaDB(t testing.TB, service string) system {
	u, err := url.Parse(testenv.MySQL(t))
	require.NoError(t, err)
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User = "tcp", u.Host, u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	admin := database(t, "mysql", cfg.FormatDSN())
	execute(t, admin, "CREATE DATABASE "+service)
	t.Cleanup(func() { execute(t, admin, "DROP DATABASE "+service) })
	cfg.DBName = service
	u.Path = "/" + service
	return onSQL(u.String(), database(t, "mysql", cfg.FormatDSN()), []string{
		`CREATE TRIGGER leat_away BEFORE UPDATE ON leat_messages FOR EACH ROW
		BEGIN IF NEW.state = 2 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the poison queue is away'; END IF; END`,
	}, []string{`DROP TRIGGER leat_away`})
}

func onSQLite(t testing.TB, _ string) system {
	path := filepath.Join(t.TempDir(), "leat.db")
	return onSQL("sqlite://"+path, database(t, "sqlite", "file:"+path+"?_pragma=busy_timeout(180000)"), []string{
		`CREATE TRIGGER leat_away BEFORE UPDATE ON leat_messages WHEN NEW.state = 2 BEGIN SELECT RAISE(ABORT, 'the poison queue is away'); END`,
	}, []string{`DROP TRIGGER leat_away`})
}

// onSQL makes the poison queue unreachable by statements that make the table refuse poisoned messages.
func onSQL(rawURL string, db *stdsql.DB, away, back []string) system {
	return system{
		url:  rawURL,
		open: func(t testing.TB) driver.Transport { return dial(t, rawURL) },
		takePoisonAway: func(t testing.TB, _ driver.Transport, _ string) func() {
			for _, statement := range away {
				execute(t, db, statement)
			}
			return func() {
				for _, statement := range back {
					execute(t, db, statement)
				}
			}
		},
	}
}

func dial(t testing.TB, rawURL string) driver.Transport {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	transport, err := transports.Open(ctx, rawURL)
	require.NoError(t, err)
	return transport
}

func database(t testing.TB, driver, dsn string) *stdsql.DB {
	db, err := stdsql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func execute(t testing.TB, db *stdsql.DB, statement string) {
	testenv.Insist(t, func() error {
		if _, err := db.ExecContext(context.Background(), statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		return nil
	})
}

// unique returns a unique name that is a valid name for a database.
func unique(prefix string) string { return fmt.Sprintf("%s_%08x", prefix, rand.Uint32()) }

// world is one scenario on one system.
type world struct {
	testing.TB
	system
	service string

	mu    sync.Mutex
	lines []string
}

// process is a bus of the world's service.
type process struct {
	*bus.Bus
	w     *world
	group string // of its last handler
	end   func()
}

// start runs a handler in its own process until the test ends or end is called.
func (w *world) start(h bus.Handler) *process {
	w.Helper()
	p, err := w.tryStart(bus.Config{}, h)
	require.NoError(w, err)
	return p
}

// tryStart does the same as start, and returns an error if the message system rejects a handler.
func (w *world) tryStart(cfg bus.Config, hs ...bus.Handler) (*process, error) {
	transport := w.open(w)
	cfg.Service, cfg.Stack, cfg.Logger = w.service, middleware.Standard(middleware.Config{}), slog.New(slog.DiscardHandler)
	b, err := bus.New(transport, cfg)
	require.NoError(w, err)
	p := &process{Bus: b, w: w}
	for _, h := range hs {
		require.NoError(w, b.Handle(h))
		p.group = b.GroupName(h.Name)
	}
	ran := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ran <- b.Run(ctx) }()
	p.end = sync.OnceFunc(func() {
		cancel()
		require.NoError(w, <-ran)
		closing, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(w, b.Close(closing))
	})
	select {
	case <-b.Running():
		w.Cleanup(p.end)
		return p, nil
	case err := <-ran:
		cancel()
		_ = b.Close(context.Background())
		return nil, err
	}
}

func (w *world) capabilities() driver.Capabilities {
	transport := w.open(w)
	defer func() { require.NoError(w, transport.Close(context.Background())) }()
	return transport.Capabilities()
}

// note adds a word to the scenario's text.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

func (w *world) noted() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// untilTelling plays a scenario with a delay. If an event that must happen within the delay was late, it plays the
// scenario again with a longer one, because a short delay may be too short for a busy machine.
func (w *world) untilTelling(delay time.Duration, late, early string, play func(delay time.Duration)) {
	w.Helper()
	for range 4 {
		w.service, w.lines = unique("shop"), nil
		play(delay)
		before, _, _ := strings.Cut(w.text(), late)
		if strings.Contains(before, early) {
			return
		}
		delay *= 3
	}
	w.Fatalf("not even within %s: %s", delay/3, w.text())
}

// text returns what was noted so far.
func (w *world) text() string { return strings.Join(w.noted(), ", ") }

// await waits for a condition.
func (w *world) await(what string, condition func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-timeout.C:
			w.Fatalf("waited %s for: %s; so far: %s", patience, what, w.text())
		}
	}
}

// awaitNotes waits until the handler has noted n words.
func (w *world) awaitNotes(n int) {
	w.Helper()
	w.await(fmt.Sprintf("%d notes", n), func() bool { return len(w.noted()) >= n })
}

func (p *process) publish(topic, id, payload string, key ...string) {
	p.w.Helper()
	msg := message.NewMessage(id, []byte(payload))
	msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "test"}
	if len(key) > 0 {
		msg.Metadata[driver.HeaderPartitionKey] = key[0]
	}
	p.publishMessage(topic, msg)
}

func (p *process) publishMessage(topic string, msg *message.Message) {
	p.w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(p.w, p.Transport().Publish(ctx, topic, msg))
}

// poisoned waits for n messages in the poison queue.
func (p *process) poisoned(n int) (list []driver.PoisonedMessage) {
	p.w.Helper()
	p.w.await(fmt.Sprintf("%d poisoned messages", n), func() bool {
		if p.stats().Poisoned < uint64(n) { // it asks the message system for them only then
			return false
		}
		var err error
		list, err = p.Transport().PoisonQueue(p.group).List(context.Background(), "", 1000)
		require.NoError(p.w, err)
		return len(list) >= n
	})
	return list
}

func (p *process) replay(ids ...string) {
	p.w.Helper()
	n, err := p.Transport().PoisonQueue(p.group).Replay(context.Background(), ids...)
	require.NoError(p.w, err)
	require.Equal(p.w, len(ids), n)
}

func (p *process) stats() bus.GroupStats {
	return p.Stats().Groups[strings.TrimPrefix(p.group, p.w.service+".")]
}
