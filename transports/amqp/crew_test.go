//go:build unix

package amqp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
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
	order   driver.Order
	work    time.Duration
	members []*exec.Cmd
	driver.Transport

	events []event // of the log, as far as it was read
	ready  []int   // pids that have subscribed
	read   int64
}

// orders is what a member of a crew is told.
type orders struct {
	URL, Topic, Group, Dir string
	Order                  driver.Order
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

func newCrew(t *testing.T, raw string, order driver.Order) *crew {
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

func (c *crew) subscription() driver.Subscription { return c.orders().subscription() }

func (c *crew) orders() orders {
	return orders{URL: patiently(c.raw), Topic: c.topic, Group: c.group, Dir: c.dir, Order: c.order, Park: c.park, Work: c.work}
}

func (o orders) subscription() driver.Subscription {
	return driver.Subscription{Group: o.Group, Topics: []string{o.Topic}, Known: []string{o.Topic}, Concurrency: 8, Order: o.Order, Park: o.Park}
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

// message returns one with the id, whose key is what comes before the slash.
func (c *crew) message(id string) *message.Message {
	msg := newMessage(c.topic, id)
	msg.Metadata[driver.HeaderPartitionKey], _, _ = strings.Cut(id, "/")
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

// log returns what the members have written so far.
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

// handedOut returns how often a message was handed out until it was done.
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
	write := func(what string, d *driver.Delivery) { line(what, driver.MessageID(d.Message), d.Attempt) }
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
					began := time.Now()
					_ = d.Settler.Redeliver(wait)
					if wait >= longWait {
						eventually(t, "it is held", func() bool { return transport.HeldForTest() > 0 || time.Since(began) > wait })
						write("held", d)
					}
				case d.Message.Metadata[planPoison] != "" && err != nil:
					write("poisoned", d)
					if d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("broken"))) == nil {
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
