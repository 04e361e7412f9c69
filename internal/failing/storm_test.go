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

// ledger is what became of messages.
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

// missing are the messages that nothing became of.
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

// harmed reports whether something healthy was poisoned.
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

// TestStorm stops a process again and again, as SIGTERM does, in the middle of handling, while the poison
// queue goes away and comes back every 200 ms. Nothing is lost, and nothing healthy is poisoned.
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

// tap is how a system's poison queue goes away, and how what is in it is entered in the ledger.
type tap struct {
	away func() (giveBack func())
	read func(*ledger)
}

// lockedPoison is a system whose poison queue refuses everything for a while.
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

// boundedPoison makes the group with a poison queue that holds few messages and refuses more, and has
// processes take it as it is. To delete the queue instead would lose messages: the broker confirms what it
// has routed to a queue that is being deleted.
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
	own.url = with(t, declaring, "declare", "false")
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

// empty takes everything out of a poison queue and enters it.
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

// storm lets it storm on processes that start makes.
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

// hardlyAny is how much time a process in the storm leaves its handlers when it is stopped.
const hardlyAny = time.Millisecond

// stormed is the handler of every process in the storm.
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

// inside makes a bus of this process. It tries again where the storm keeps it from starting.
func inside(w *world, l *ledger) (v victim) {
	w.await("a bus", func() bool {
		p, err := w.tryStart(stormed(l.handle), bus.Config{DrainTimeout: hardlyAny})
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

// TestMainOfAProcessInTheStorm is a service that ends with SIGTERM. Its lines tell what it does.
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

// heard enters what a process says. It reports whether the process has just begun.
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

// weather takes something away and gives it back every 200 ms. What it returns ends that, with it given
// back.
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
