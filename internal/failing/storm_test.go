package failing_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
)

// stormVariable is how often TestStorm stops its process; the default is small.
const stormVariable = "LEAT_TEST_STORM"

// ledger records the outcomes of messages.
type ledger struct {
	mu       sync.Mutex
	handled  map[string]int
	poisoned map[string]bool // what was seen in the poison queue
}

func newLedger() *ledger {
	return &ledger{handled: make(map[string]int), poisoned: make(map[string]bool)}
}

func (l *ledger) handle(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handled[id]++
}

func (l *ledger) poison(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.poisoned[id] = true
}

func (l *ledger) counts() (handled, poisoned int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.handled), len(l.poisoned)
}

// missing returns the messages without an outcome.
func (l *ledger) missing(published []string) (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range published {
		if l.handled[id] == 0 && !l.poisoned[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// harmed reports whether a healthy message was poisoned.
func (l *ledger) harmed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.poisoned {
		if !strings.HasPrefix(id, "bad") {
			return true
		}
	}
	return false
}

// TestStorm repeatedly stops a process, as SIGTERM does, while it handles messages, and the poison queue becomes
// unreachable and reachable every 200 ms. No message may be lost, and no healthy one poisoned.
func TestStorm(t *testing.T) {
	t.Run("RabbitMQ", func(t *testing.T) {
		t.Parallel()
		own, service := onRabbitMQ(t, "classic"), unique("storm")
		l := newLedger()
		poison := boundedPoison(t, &own, l, service+".ledger")
		storm(t, own, service, l, poison, inside)
	})
	t.Run("RabbitMQ, quorum, processes", func(t *testing.T) {
		t.Parallel()
		own, service := onRabbitMQ(t, "quorum"), unique("storm")
		l := newLedger()
		poison := boundedPoison(t, &own, l, service+".ledger")
		storm(t, own, service, l, poison, outside)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		own, service := onPostgres(t, unique("failing")), unique("storm")
		storm(t, own, service, newLedger(), lockedPoison(t, own, service+".ledger"), inside)
	})
}

// tap has the functions that make a system's poison queue unreachable, and that record its messages in the ledger.
type tap struct {
	away func() (giveBack func())
	read func(*ledger)
}

// lockedPoison returns a system whose poison queue refuses all messages for a while.
func lockedPoison(t testing.TB, own system, group string) tap {
	transport := own.open(t)
	t.Cleanup(func() { require.NoError(t, transport.Close(context.Background())) })
	return tap{
		away: func() func() { return own.takePoisonAway(t, transport, group) },
		read: func(l *ledger) {
			list, err := transport.PoisonQueue(group).List(t.Context(), "", 10_000)
			require.NoError(t, err)
			for _, m := range list {
				l.poison(driver.MessageID(m.Message))
			}
		},
	}
}

// boundedPoison creates the group with a poison queue that has a small limit and refuses more messages. Processes use
// it as it is. Deleting the queue instead would lose messages, because the broker confirms messages that it has
// routed to a queue that is being deleted.
func boundedPoison(t testing.TB, own *system, l *ledger, group string) tap {
	const bound = 10
	first := own.open(t)
	_, err := first.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{topic}, Known: []string{topic}, Concurrency: 1})
	require.NoError(t, err)
	require.NoError(t, first.Close(t.Context()))
	conn, err := rabbit.Dial(testenv.RabbitMQ(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Confirm(false))
	name := group + ".poison"
	_, err = ch.QueueDelete(name, false, false, false)
	require.NoError(t, err)
	_, err = ch.QueueDeclare(name, true, false, false, false, rabbit.Table{"x-max-length": bound, "x-overflow": "reject-publish"})
	require.NoError(t, err)
	declaring := own.url
	own.url = testenv.WithOption(t, declaring, "declare", "false")
	own.open = func(t testing.TB) driver.Transport { return dial(t, own.url) }
	var mu sync.Mutex // the channel is one goroutine's at a time
	read := func(l *ledger) {
		mu.Lock()
		defer mu.Unlock()
		l.empty(t, ch, name)
	}
	return tap{
		away: func() func() {
			mu.Lock()
			defer mu.Unlock()
			for room := true; room; { // fill it up
				filler, err := ch.PublishWithDeferredConfirm("", name, true, false, rabbit.Publishing{MessageId: "filler"})
				require.NoError(t, err)
				room = filler.Wait()
			}
			return func() { read(l) }
		},
		read: read,
	}
}

// empty removes all messages from a poison queue and records them.
func (l *ledger) empty(t testing.TB, ch *rabbit.Channel, name string) {
	const autoAck = true
	for {
		d, ok, err := ch.Get(name, autoAck)
		require.NoError(t, err)
		if !ok {
			return
		}
		if d.MessageId != "filler" {
			l.poison(d.MessageId)
		}
	}
}

// victim is a process in the storm. stop is what SIGTERM does, and returns what the process had counted.
type victim struct{ stop func() bus.GroupStats }

// storm runs the test with processes of start.
func storm(t *testing.T, own system, service string, l *ledger, poison tap, start func(*world, *ledger) victim) {
	stops := 8
	if n, err := strconv.Atoi(os.Getenv(stormVariable)); err == nil {
		stops = n
	}
	const batch = 60 // messages between two stops; every tenth is bad
	w := &world{TB: t, system: own, service: service}
	publisher := own.open(t)
	defer func() { require.NoError(t, publisher.Close(context.Background())) }()
	start(w, l).stop() // the group is there
	stopWeather := weather(poison.away)
	defer stopWeather()

	good, bad := 0, 0
	var published []string
	var interrupted, refused uint64
	for stop := range stops {
		p := start(w, l)
		for i := range batch {
			id := fmt.Sprintf("good-%d-%d", stop, i)
			if i%10 == 0 {
				id, bad = fmt.Sprintf("bad-%d-%d", stop, i), bad+1
			} else {
				good++
			}
			published = append(published, id)
			msg := message.NewMessage(id, []byte(`{}`))
			msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "test"}
			require.NoError(t, publisher.Publish(t.Context(), topic, msg))
		}
		before, _ := l.counts()
		w.await("some of them", func() bool { n, _ := l.counts(); return n > before+batch/4 || n == good })
		stats := p.stop()
		interrupted += stats.Interrupted
		refused += stats.Redelivered
	}
	stopWeather()
	p := start(w, l)
	defer p.stop()
	defer func() {
		if t.Failed() {
			t.Log(l.missing(published))
		}
	}()
	w.await("every good message is handled and every bad one poisoned", func() bool {
		poison.read(l)
		handled, poisoned := l.counts()
		return handled == good && poisoned >= bad || l.harmed()
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	twice := 0
	for id := range l.poisoned {
		require.True(t, strings.HasPrefix(id, "bad"), "%s is healthy and was poisoned", id)
	}
	for _, n := range l.handled {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d stops, %d deliveries interrupted: %d good messages handled, %d of them twice; %d bad ones poisoned, after the queue had refused %d times",
		stops, interrupted, good, twice, bad, refused)
}

// hardlyAny is the drain timeout of the processes.
const hardlyAny = time.Millisecond

// stormed returns the handler of every process.
func stormed(handle func(id string)) bus.Handler {
	return handlers.Raw("ledger", []string{topic}, func(ctx context.Context, msg *message.Message) error {
		id := driver.MessageID(msg)
		if strings.HasPrefix(id, "bad") {
			return bus.Permanent(errBroken)
		}
		wait := time.NewTimer(5 * time.Millisecond)
		defer wait.Stop()
		select {
		case <-wait.C:
			handle(id)
			return nil
		case <-ctx.Done(): // interrupted
			return ctx.Err()
		}
	}, handlers.Concurrency(4), handlers.Retry(bus.OneTry()))
}

// inside starts a bus in this process. It retries if the bus can't start because the poison queue is unreachable.
func inside(w *world, l *ledger) (v victim) {
	w.await("a bus", func() bool {
		p, err := w.tryStart(bus.Config{DrainTimeout: hardlyAny}, stormed(l.handle))
		if err != nil {
			return false
		}
		v.stop = func() bus.GroupStats {
			p.end()
			return p.stats()
		}
		return true
	})
	return v
}

const (
	// stormURLVariable and stormServiceVariable tell a process in the storm what it is.
	stormURLVariable     = "LEAT_TEST_STORM_URL"
	stormServiceVariable = "LEAT_TEST_STORM_SERVICE"
)

// TestMainOfAProcessInTheStorm is a service that ends with SIGTERM. It prints what it does.
func TestMainOfAProcessInTheStorm(t *testing.T) {
	raw := os.Getenv(stormURLVariable)
	if raw == "" {
		t.Skip("the storm runs it")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := bus.New(dial(t, raw), bus.Config{
		Service: os.Getenv(stormServiceVariable), Stack: middleware.Standard(middleware.Config{}),
		Logger: slog.New(slog.DiscardHandler), DrainTimeout: hardlyAny,
	})
	require.NoError(t, err)
	require.NoError(t, b.Handle(stormed(func(id string) { fmt.Println("handled", id) })))
	go func() {
		<-b.Running()
		fmt.Println("running")
	}()
	require.NoError(t, b.Run(ctx))
	closing, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, b.Close(closing))
	stats := b.Stats().Groups["ledger"]
	fmt.Println("interrupted", stats.Interrupted, stats.Redelivered)
}

// outside starts processes, and stops them by SIGTERM.
func outside(w *world, l *ledger) (v victim) {
	w.await("a process", func() bool {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMainOfAProcessInTheStorm$")
		cmd.Env = append(os.Environ(), stormURLVariable+"="+w.url, stormServiceVariable+"="+w.service)
		out, err := cmd.StdoutPipe()
		require.NoError(w, err)
		require.NoError(w, cmd.Start())
		lines, over := bufio.NewScanner(out), make(chan struct{})
		running := false
		for !running && lines.Scan() {
			running = heard(lines.Text(), l, nil)
		}
		if !running {
			_ = cmd.Wait() // the storm keeps it from starting
			return false
		}
		var stats bus.GroupStats
		go func() {
			defer close(over)
			for lines.Scan() {
				heard(lines.Text(), l, &stats)
			}
		}()
		v.stop = sync.OnceValue(func() bus.GroupStats {
			require.NoError(w, cmd.Process.Signal(syscall.SIGTERM))
			<-over
			require.NoError(w, cmd.Wait(), "a process that is told to stop ends in peace")
			return stats
		})
		w.Cleanup(func() { _ = cmd.Process.Kill() })
		return true
	})
	return v
}

// heard records a line of a process. It reports whether the process has just started.
func heard(line string, l *ledger, stats *bus.GroupStats) (running bool) {
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "handled":
		l.handle(rest)
	case "interrupted":
		_, _ = fmt.Sscan(rest, &stats.Interrupted, &stats.Redelivered)
	}
	return what == "running"
}

// weather calls away, and the function that it returns, alternately every 200 ms. stop ends that after the latter
// call.
func weather(away func() func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		giveBack := func() {}
		for gone := false; ; gone = !gone {
			if gone {
				giveBack()
			} else {
				giveBack = away()
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				if !gone {
					giveBack()
				}
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
	})
}
