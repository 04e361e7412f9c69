//go:build unix

package amqp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// crew is a group whose consumers are processes of their own. They write what they do into one file,
// each line by one append, so that the lines are in the order of what happened.
type crew struct {
	t       *testing.T
	raw     string
	topic   string
	group   string
	dir     string
	park    bool
	order   bus.Order
	work    time.Duration
	members []*exec.Cmd
	bus.Transport

	events []event // of the log, as far as it was read
	ready  []int   // pids that have subscribed
	read   int64
}

// orders is what a member of a crew is told.
type orders struct {
	URL, Topic, Group, Dir string
	Order                  bus.Order
	Park                   bool
	Work                   time.Duration
}

// Headers that tell a member what to do with a message.
const (
	planWait   = "test_wait"   // redeliver the first time, by so much
	planPoison = "test_poison" // poison until the file is there
	planKill   = "test_kill"   // kill the process at every further attempt
	mended     = "mended"

	longWait = 5 * time.Second // the member tells when what waits for so long is written down
)

// event is a line of the log.
type event struct {
	what    string // in, done, waits, held, poisoned, parked
	id      string
	attempt int
	pid     int
	at      time.Time
}

const crewOrders = "LEAT_TEST_CREW"

func newCrew(t *testing.T, raw string, order bus.Order) *crew {
	transport := open(t, raw)
	c := &crew{
		t: t, raw: raw, topic: unique("order.paid.v1"), group: unique("ledger"), dir: t.TempDir(),
		order: order, work: time.Millisecond, Transport: transport,
	}
	t.Cleanup(func() {
		for len(c.members) > 0 {
			c.kill(0)
		}
		closeAll(t, transport)
	})
	return c
}

// prepare makes the group; call it when the crew is as it should be.
func (c *crew) prepare() {
	c.t.Helper()
	subscribe(c.t, c.Transport, c.subscription())
}

func (c *crew) subscription() bus.Subscription { return c.orders().subscription() }

func (c *crew) orders() orders {
	return orders{URL: c.raw, Topic: c.topic, Group: c.group, Dir: c.dir, Order: c.order, Park: c.park, Work: c.work}
}

func (o orders) subscription() bus.Subscription {
	return bus.Subscription{Group: o.Group, Topics: []string{o.Topic}, Known: []string{o.Topic}, Concurrency: 8, Order: o.Order, Park: o.Park}
}

// start adds a member.
func (c *crew) start() {
	c.t.Helper()
	text, err := json.Marshal(c.orders())
	require.NoError(c.t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestMemberOfACrew$", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), crewOrders+"="+string(text))
	cmd.Stderr = os.Stderr
	require.NoError(c.t, cmd.Start())
	c.members = append(c.members, cmd)
}

// awaitReady waits until every member has subscribed: one that loses the broker before that gives up.
func (c *crew) awaitReady() {
	c.t.Helper()
	for _, cmd := range c.members {
		eventually(c.t, "a member is ready", func() bool {
			c.log()
			return slices.Contains(c.ready, cmd.Process.Pid)
		})
	}
}

// kill ends a member without a word.
func (c *crew) kill(i int) {
	c.t.Helper()
	cmd := c.members[i]
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	c.members = append(c.members[:i:i], c.members[i+1:]...)
}

// message is one with the id, whose key is what comes before the slash.
func (c *crew) message(id string) *message.Message {
	msg := newMessage(c.topic, id)
	msg.Metadata[bus.HeaderPartitionKey], _, _ = strings.Cut(id, "/")
	return msg
}

// publishAll publishes in order, at the broker's speed.
func (c *crew) publishAll(ids []string) {
	c.t.Helper()
	msgs := make([]*message.Message, len(ids))
	for i, id := range ids {
		msgs[i] = c.message(id)
	}
	require.NoError(c.t, c.Publish(c.t.Context(), c.topic, msgs...))
}

// publish publishes one message with a plan.
func (c *crew) publish(id string, plan ...string) {
	c.t.Helper()
	msg := c.message(id)
	for i := 0; i < len(plan); i += 2 {
		msg.Metadata[plan[i]] = plan[i+1]
	}
	require.NoError(c.t, c.Publish(c.t.Context(), c.topic, msg))
}

// mend lets members handle what they poisoned.
func (c *crew) mend() {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(filepath.Join(c.dir, mended), nil, 0o600))
}

// log is what the members have written so far.
func (c *crew) log() []event {
	c.t.Helper()
	file, err := os.Open(filepath.Join(c.dir, "log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(c.t, err)
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.NewSectionReader(file, c.read, math.MaxInt64-c.read))
	require.NoError(c.t, err)
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	c.read += int64(len(text))
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) == 5 {
			attempt, _ := strconv.Atoi(f[2])
			pid, _ := strconv.Atoi(f[3])
			micros, _ := strconv.ParseInt(f[4], 10, 64)
			if f[0] == "ready" {
				c.ready = append(c.ready, pid)
				continue
			}
			c.events = append(c.events, event{f[0], f[1], attempt, pid, time.UnixMicro(micros)})
		}
	}
	return c.events
}

// await waits for a line.
func (c *crew) await(what, id string) event {
	c.t.Helper()
	var found event
	eventually(c.t, what+" "+id, func() bool {
		for _, e := range c.log() {
			if e.what == what && e.id == id {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// handedOut is how often a message was handed out until it was done.
func (c *crew) handedOut(id string) (n int) {
	c.t.Helper()
	for _, e := range c.log() {
		switch {
		case e.id != id:
		case e.what == "done":
			return n
		case e.what == "in":
			n++
		}
	}
	return n
}

// awaitDone waits until so many messages are done, as long as there is progress.
func (c *crew) awaitDone(n int) {
	c.t.Helper()
	for had := len(c.done()); had < n; had = len(c.done()) {
		eventually(c.t, fmt.Sprintf("more than %d of %d messages are done", had, n), func() bool { return len(c.done()) > had })
	}
	require.Len(c.t, c.done(), n)
}

func (c *crew) done() map[string]int {
	done := make(map[string]int)
	for _, e := range c.log() {
		if e.what == "done" {
			done[e.id]++
		}
	}
	return done
}

// requireOrder makes sure that no message of a key was handed out for the first time after a later one
// of it, before the one ahead of it was done, or while another was out in the same process.
func (c *crew) requireOrder(dropped ...string) {
	c.t.Helper()
	highest, seen, done := make(map[string]string), make(map[string]bool), make(map[string]bool)
	out := make(map[string]string)
	for _, e := range c.log() {
		key, _, _ := strings.Cut(e.id, "/")
		here := key + " " + strconv.Itoa(e.pid)
		switch e.what {
		case "in":
			require.Empty(c.t, out[here], "%s was handed out meanwhile", e.id)
			out[here] = e.id
			if !seen[e.id] {
				require.Greater(c.t, e.id, highest[key], "it came late")
				require.True(c.t, highest[key] == "" || done[highest[key]] || slices.Contains(dropped, highest[key]), "%s came before %s was done", e.id, highest[key])
			}
			seen[e.id], highest[key] = true, max(highest[key], e.id)
		case "done", "waits", "poisoned":
			out[here] = ""
			done[e.id] = done[e.id] || e.what == "done"
		}
	}
}

// TestMemberOfACrew is the other process of a crew.
func TestMemberOfACrew(t *testing.T) {
	text := os.Getenv(crewOrders)
	if text == "" {
		t.Skip("this is the other process of tests with a crew")
	}
	var o orders
	require.NoError(t, json.Unmarshal([]byte(text), &o))
	log, err := os.OpenFile(filepath.Join(o.Dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	line := func(what, id string, attempt int) {
		_, _ = fmt.Fprintf(log, "%s %s %d %d %d\n", what, id, attempt, os.Getpid(), time.Now().UnixMicro())
	}
	write := func(what string, d *bus.Delivery) { line(what, bus.MessageID(d.Message), d.Attempt) }
	opened, err := openURL(t.Context(), o.URL)
	require.NoError(t, err)
	transport := opened.(*amqp.Transport)
	feed, err := transport.Subscribe(t.Context(), o.subscription())
	require.NoError(t, err)
	line("ready", "-", 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				d, err := feed.Next(t.Context())
				if err != nil {
					return
				}
				write("in", d)
				wait, _ := time.ParseDuration(d.Message.Metadata[planWait])
				_, err = os.Stat(filepath.Join(o.Dir, mended))
				switch {
				case d.Message.Metadata[planKill] != "" && d.Attempt > 1:
					os.Exit(9)
				case wait > 0 && d.Attempt == 1:
					write("waits", d)
					_ = d.Settler.Redeliver(wait)
					if wait >= longWait {
						eventually(t, "it is held", func() bool { return transport.HeldForTest() > 0 })
						write("held", d)
					}
				case d.Message.Metadata[planPoison] != "" && err != nil:
					write("poisoned", d)
					if d.Settler.Poison(t.Context(), bus.NewFault(d, errors.New("broken"))) == nil {
						write("parked", d)
					}
				default:
					<-time.After(o.Work)
					write("done", d)
					_ = d.Settler.Ack()
				}
			}
		})
	}
	wg.Wait()
}

func bothQueues(t *testing.T, broker string, test func(t *testing.T, raw string)) {
	for _, queue := range []string{"quorum", "classic"} {
		t.Run(queue, func(t *testing.T) { test(t, withOptions(broker, "queue="+queue)) })
	}
}

// What waits for its next try keeps its time and its attempts when the process dies, and its key stays
// behind it.
func TestAWaitingMessageOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	for _, order := range []bus.Order{bus.OrderedByKey, bus.OrderedStrictly} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
				c := newCrew(t, raw, order)
				c.prepare()
				c.publish("a/1", planWait, "5s")
				c.publish("a/2")
				c.publish("a/3")
				c.start()
				c.await("held", "a/1")
				c.kill(0)
				c.start()
				c.awaitDone(3)
				c.requireOrder()
				again := c.await("done", "a/1")
				require.False(t, again.at.Before(c.await("waits", "a/1").at.Add(5*time.Second)), "its time was forgotten")
				require.GreaterOrEqual(t, again.attempt, 2)
			})
		})
	}
}

// So it does when the broker is stopped or killed.
func TestAWaitingMessageOutlivesItsBroker(t *testing.T) {
	b := ownBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		c := newCrew(t, raw, bus.OrderedByKey)
		c.prepare()
		c.publish("a/1", planWait, "10s")
		c.publish("a/2")
		c.start()
		c.await("held", "a/1")
		if strings.Contains(raw, "quorum") {
			b.kill(t)
		} else {
			b.stop(t)
		}
		b.start(t)
		c.publish("a/3")
		c.awaitDone(3)
		c.requireOrder()
		again := c.await("done", "a/1")
		require.False(t, again.at.Before(c.await("waits", "a/1").at.Add(10*time.Second)), "its time was forgotten")
		require.Equal(t, c.handedOut("a/1"), again.attempt) // 2, unless its time came before the broker's end
	})
}

// A key with more messages than a process may fetch holds back itself only, whether its head waits for
// its time or for an operator.
func TestAKeyWithManyFollowersHoldsBackNoOther(t *testing.T) {
	n := 5000
	if s := os.Getenv("LEAT_TEST_FOLLOWERS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	for _, plan := range [][]string{{planWait, "1h"}, {planPoison, "yes"}} {
		t.Run(plan[0], func(t *testing.T) {
			bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
				c := newCrew(t, raw, bus.OrderedByKey)
				c.work, c.park = 0, true
				c.prepare()
				c.publish("a/00000", plan...)
				c.publishAll(numbered("a", n))
				c.publishAll(numbered("b", 100))
				c.start()
				began := time.Now()
				c.awaitDone(100)
				t.Logf("the other key was done after %s", time.Since(began))
				withBroker(t, raw, func(ch *rabbit.Channel) {
					eventually(t, "what follows is held", func() bool {
						q, err := ch.QueueDeclarePassive(c.group, true, false, false, false, nil)
						require.NoError(t, err)
						return q.Messages == 0
					})
				})
				c.kill(0)
				c.start()
				c.publish("b/00101")
				c.awaitDone(101)
				if plan[0] == planPoison {
					began := time.Now()
					c.mend()
					queue := c.PoisonQueue(c.group)
					all, err := queue.List(t.Context(), "", 10)
					require.NoError(t, err)
					require.Len(t, all, 1)
					_, err = queue.Replay(t.Context(), all[0].ID)
					require.NoError(t, err)
					c.awaitDone(101 + 1 + n)
					t.Logf("all that was parked was done after %s", time.Since(began))
				}
				c.requireOrder()
			})
		})
	}
}

func numbered(key string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s/%05d", key, i+1)
	}
	return ids
}

// Order holds over three processes that are killed, most of them while they lead, and messages that
// fail meanwhile.
func TestOrderOutlivesKillsAndRedeliveries(t *testing.T) {
	t.Parallel()
	kills := 2
	if s := os.Getenv("LEAT_TEST_KILLS"); s != "" {
		kills, _ = strconv.Atoi(s)
	}
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		c := newCrew(t, raw, bus.OrderedByKey)
		c.prepare()
		const keys = 15
		each := 15 * (kills + 1)
		for i := range each {
			for k := range keys {
				var plan []string
				if wait := rand.IntN(40); wait < 3 {
					plan = []string{planWait, []string{"150ms", "400ms", "1500ms"}[wait]}
				}
				c.publish(fmt.Sprintf("k%02d/%04d", k, i), plan...)
			}
		}
		for range 3 {
			c.start()
		}
		for n := range kills {
			eventually(t, "work goes on", func() bool { return len(c.done()) > (n+1)*keys*each/(kills+2) })
			log := c.log()
			c.kill(max(0, slices.IndexFunc(c.members, func(m *exec.Cmd) bool { return m.Process.Pid == log[len(log)-1].pid })))
			c.start()
		}
		c.awaitDone(keys * each)
		c.requireOrder()
		doubles := -keys * each
		for _, n := range c.done() {
			doubles += n
		}
		t.Logf("%d messages, %d kills, %d doubles", keys*each, kills, doubles)
	})
}

// A poisoned message holds back its key, whatever becomes of the processes, until an operator elsewhere
// replays or drops it.
func TestParkedKeysOutliveTheirProcesses(t *testing.T) {
	b := ownBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		c := newCrew(t, raw, bus.OrderedByKey)
		c.park = true
		c.prepare()
		const bad, keys, each = 3, 10, 30
		for i := range each {
			for k := range keys {
				var plan []string
				if k < bad && i == 2*k+1 {
					plan = []string{planPoison, "yes"}
				}
				c.publish(fmt.Sprintf("k%02d/%04d", k, i), plan...)
			}
		}
		parked := 0
		for k := range bad {
			parked += each - 2*k - 1
		}
		for range 3 {
			c.start()
		}
		operator := open(t, raw)
		defer closeAll(t, operator)
		queue := operator.PoisonQueue(c.group)
		for k := range bad { // a crash in between poisons twice
			c.await("parked", fmt.Sprintf("k%02d/%04d", k, 2*k+1))
		}
		for range 2 {
			log := c.log()
			c.kill(max(0, slices.IndexFunc(c.members, func(m *exec.Cmd) bool { return m.Process.Pid == log[len(log)-1].pid })))
			c.start()
		}
		c.awaitDone(keys*each - parked)
		c.awaitReady()
		b.stop(t)
		b.start(t)
		c.kill(0)
		c.kill(0)
		c.publish("k00/" + fmt.Sprintf("%04d", each))
		c.publish("k09/" + fmt.Sprintf("%04d", each))
		c.awaitDone(keys*each - parked + 1)

		// The first fails again; then all is mended.
		list := func() []bus.PoisonedMessage {
			all, err := queue.List(t.Context(), "", 100)
			require.NoError(t, err)
			return all
		}
		first := func() string {
			for _, p := range list() {
				if bus.PartitionKey(p.Message) == "k00" {
					return p.ID
				}
			}
			return ""
		}
		replay := func(ids ...string) {
			n, err := queue.Replay(t.Context(), ids...)
			require.NoError(t, err)
			require.Len(t, ids, n)
		}
		before := first()
		replay(before)
		eventually(t, "it is poisoned again", func() bool { return first() != "" })
		require.NotEqual(t, before, first())
		require.Len(t, c.done(), keys*each-parked+1)
		c.mend()
		dropped := ""
		for _, p := range list() {
			if bus.PartitionKey(p.Message) == "k01" {
				dropped = bus.MessageID(p.Message)
				n, err := queue.Drop(t.Context(), p.ID)
				require.NoError(t, err)
				require.Equal(t, 1, n)
			} else {
				replay(p.ID)
			}
		}
		c.start()
		c.start()
		c.awaitDone(keys*each + 2 - 1)
		require.Zero(t, c.done()[dropped])
		c.requireOrder(dropped)
		n, err := queue.Len(t.Context())
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// A held message that kills its process comes with growing attempts, so that it can be poisoned; one
// that waits meanwhile is not counted along.
func TestAHeldMessageThatKillsItsProcess(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		c := newCrew(t, raw, bus.OrderedByKey)
		c.prepare()
		c.publish("a/1", planWait, "300ms", planKill, "yes")
		c.publish("b/1", planWait, "1h")
		c.publish("a/2")
		highest := 1
		for crash := 0; highest < 5; crash++ {
			require.Less(t, crash, 10, "the attempts do not grow")
			c.start()
			_ = c.members[0].Wait()
			require.Equal(t, 9, c.members[0].ProcessState.ExitCode())
			c.members = nil
			before := highest
			for _, e := range c.log() {
				if e.what == "in" && e.id == "a/1" {
					highest = max(highest, e.attempt)
				}
			}
			require.LessOrEqual(t, highest, before+1)
		}
		require.Empty(t, c.done())
		for _, e := range c.log() {
			require.False(t, e.id == "b/1" && e.attempt > 1, "it was not handed out")
		}
	})
}

// What a process leaves in peace costs no attempt, though its time has come.
func TestAStopCostsHeldMessagesNoAttempt(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := bus.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: bus.OrderedByKey}
		for stop := range 3 {
			transport := open(t, raw)
			feed := subscribe(t, transport, sub)
			if stop == 0 {
				publishKeyed(t, transport, topic, "a/1", "a/2")
				require.NoError(t, next(t, feed).Settler.Redeliver(150*time.Millisecond))
				eventually(t, "it is held", func() bool { return transport.HeldForTest() == 1 })
				closeAll(t, transport)
				continue
			}
			d := next(t, feed)
			require.Equal(t, "a/1", bus.MessageID(d.Message))
			require.Equal(t, 2, d.Attempt, "after %d stops", stop)
			require.NoError(t, d.Settler.GiveBack(0)) // it is ready when the transport is closed
			if stop == 2 {
				require.Equal(t, "a/1", take(t, feed))
				require.Equal(t, "a/2", take(t, feed))
			}
			closeAll(t, transport)
		}
	})
}

// A crash between the copy and the ack leaves a message in two places. The original is the one too many.
func TestTheOriginalOfAHeldMessageIsDropped(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := bus.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: bus.OrderedByKey}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1")
		began := time.Now()
		require.NoError(t, next(t, feed).Settler.Redeliver(2*time.Second))
		eventually(t, "it is held", func() bool { return first.HeldForTest() == 1 })
		require.NoError(t, feed.Close(t.Context()))
		closeAll(t, first)

		second := open(t, raw)
		feed = subscribe(t, second, sub)
		publishKeyed(t, second, topic, "a/1", "a/2") // as the crash would have left it
		withBroker(t, raw, func(ch *rabbit.Channel) {
			deliveries, err := ch.Consume(group, "", false, false, false, false, nil)
			require.NoError(t, err)
			<-deliveries
		}) // the channel ends: it comes again
		d := next(t, feed)
		require.Equal(t, "a/1", bus.MessageID(d.Message))
		require.Equal(t, 2, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), 2*time.Second)
		ack(t, d)
		require.Equal(t, "a/2", take(t, feed))
		publishKeyed(t, second, topic, "a/3")
		require.Equal(t, "a/3", take(t, feed))
		closeAll(t, second)
	})
}

// Bodies that are too large to be here at once are fetched when it is their turn, also after what is
// held went back to its queue for a moment.
func TestHeldBodiesAreFetched(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic := unique("order.paid.v1")
		transport := open(t, withOptions(raw, "prefetch=20"))
		feed := subscribe(t, transport, bus.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 12, Order: bus.OrderedByKey,
		})
		const keys, each = 6, 20 // 24 MB
		for i := range each {
			for k := range keys {
				msg := newMessage(topic, fmt.Sprintf("k%d/%02d", k, i))
				msg.Metadata[bus.HeaderPartitionKey] = fmt.Sprint(k)
				msg.Payload = bytes.Repeat([]byte{byte('a' + k)}, 200_000)
				require.NoError(t, transport.Publish(t.Context(), topic, msg))
			}
		}
		for range keys {
			require.NoError(t, next(t, feed).Settler.Redeliver(5*time.Second)) // till all are taken once
		}
		eventually(t, "most are held", func() bool { return transport.HeldForTest() > keys*each-20 })
		for range 3 {
			transport.TickForTest()
		}
		var mu sync.Mutex
		got := make(map[string][]string)
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				for {
					d, err := feed.Next(t.Context())
					if err != nil {
						return
					}
					key, _, _ := strings.Cut(bus.MessageID(d.Message), "/")
					mu.Lock()
					got[key] = append(got[key], bus.MessageID(d.Message))
					mu.Unlock()
					if len(d.Message.Payload) != 200_000 || d.Message.Payload[0] != 'a'+key[1]-'0' {
						t.Errorf("%s has another's payload", bus.MessageID(d.Message))
					}
					_ = d.Settler.Ack()
				}
			})
		}
		eventually(t, "all come", func() bool {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, list := range got {
				n += len(list)
			}
			return n == keys*each
		})
		closeAll(t, transport)
		wg.Wait()
		for key, list := range got {
			require.True(t, slices.IsSorted(list), "%s: %v", key, list)
			require.Len(t, list, each)
		}
	})
}

func publishKeyed(t testing.TB, transport bus.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		msg := newMessage(topic, id)
		msg.Metadata[bus.HeaderPartitionKey], _, _ = strings.Cut(id, "/")
		require.NoError(t, transport.Publish(t.Context(), topic, msg))
	}
}

// A message without a key holds back nothing, and comes again in its time.
func TestAMessageWithoutAKeyComesAgain(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic := unique("order.paid.v1")
		transport := open(t, raw)
		feed := subscribe(t, transport, bus.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4, Order: bus.OrderedByKey, Park: true,
		})
		publishKeyed(t, transport, topic, "/1", "/2")
		began := time.Now()
		const wait = 3 * time.Second // the other is taken meanwhile
		require.NoError(t, next(t, feed).Settler.Redeliver(wait))
		require.Equal(t, "/2", take(t, feed))
		d := next(t, feed)
		require.Equal(t, "/1", bus.MessageID(d.Message))
		require.Equal(t, 2, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), wait)
		require.NoError(t, d.Settler.Poison(t.Context(), bus.NewFault(d, errors.New("broken"))))
		publishKeyed(t, transport, topic, "/3")
		require.Equal(t, "/3", take(t, feed))
		closeAll(t, transport)
	})
}

// One parked key costs the others nothing that can be measured. It takes its time, and the machine.
func TestOneParkedKeyCostsTheOthersNothing(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG to measure")
	}
	const keys, each = 1000, 120
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		measure := func(poisoned int) float64 {
			transport := open(t, raw)
			defer closeAll(t, transport)
			topic := unique("order.paid.v1")
			feed := subscribe(t, transport, bus.Subscription{
				Group: unique("ledger"), Topics: []string{topic}, Concurrency: 100, Order: bus.OrderedByKey, Park: true,
			})
			var msgs []*message.Message
			for i := range each {
				for k := range keys {
					msg := newMessage(topic, fmt.Sprintf("%d/%d", k, i))
					msg.Metadata[bus.HeaderPartitionKey] = fmt.Sprint(k)
					msgs = append(msgs, msg)
				}
			}
			require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
			var done atomic.Int64
			began := make(chan time.Time, 1)
			all := make(chan struct{})
			expected := int64(keys*each - poisoned*each)
			warm := expected / 10 // the key is parked by then
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					for {
						d, err := feed.Next(t.Context())
						if err != nil {
							return
						}
						if poisoned > 0 && bus.MessageID(d.Message) == "0/0" {
							_ = d.Settler.Poison(t.Context(), bus.NewFault(d, errors.New("broken")))
							continue
						}
						_ = d.Settler.Ack()
						switch done.Add(1) {
						case warm:
							began <- time.Now()
						case expected:
							close(all)
						}
					}
				})
			}
			<-all
			rate := float64(expected-warm) / time.Since(<-began).Seconds()
			require.NoError(t, feed.Close(t.Context()))
			wg.Wait()
			return rate
		}
		var without, with []float64
		measure(0) // the broker's caches, and this process's
		for i := range 9 {
			if i%2 == 0 {
				without, with = append(without, measure(0)), append(with, measure(1))
			} else {
				with, without = append(with, measure(1)), append(without, measure(0))
			}
		}
		slices.Sort(without)
		slices.Sort(with)
		t.Logf("without %.0f/s, with one of %d keys parked %.0f/s: %.2f", without[4], keys, with[4], with[4]/without[4])
		require.GreaterOrEqual(t, with[4]/without[4], 0.95)
	})
}
