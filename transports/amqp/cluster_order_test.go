//go:build unix

package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// keyed is a load on an ordered group. Its workers poison the message bad/0000 until mend is called, redeliver
// late/0000 once after a while, and ack everything else.
type keyed struct {
	t     testing.TB
	topic string
	sub   driver.Subscription

	mu      sync.Mutex
	mended  bool
	waited  bool
	in      []string // what was handed out, in that order, each for the first time
	done    map[string]int
	early   []string // handed out before what was ahead of it was done
	want    []string
	workers sync.WaitGroup
}

const lateBy = 10 * time.Second

func newKeyed(t testing.TB) *keyed {
	k := &keyed{t: t, topic: unique("order.paid.v1"), done: make(map[string]int)}
	k.sub = driver.Subscription{
		Group: unique("ledger"), Topics: []string{k.topic}, Known: []string{k.topic}, Concurrency: 8,
		Order: driver.OrderedByKey, Park: true,
	}
	return k
}

// consume handles with some workers until the transport is closed.
func (k *keyed) consume(transport *amqp.Transport) {
	feed := subscribe(k.t, transport, k.sub)
	for range 8 {
		k.workers.Go(func() {
			for {
				d, err := feed.Next(context.Background())
				if err != nil {
					return
				}
				k.handle(d)
			}
		})
	}
}

func (k *keyed) handle(d *driver.Delivery) {
	id := driver.MessageID(d.Message)
	key, number, _ := strings.Cut(id, "/")
	k.mu.Lock()
	if !slices.Contains(k.in, id) {
		k.in = append(k.in, id)
		var n int
		_, _ = fmt.Sscan(strings.TrimLeft(number, "0")+" ", &n)
		if before := fmt.Sprintf("%s/%04d", key, n-1); n > 0 && k.done[before] == 0 {
			k.early = append(k.early, id)
		}
	}
	poison := id == "bad/0000" && !k.mended
	wait := id == "late/0000" && !k.waited
	k.waited = k.waited || wait
	k.mu.Unlock()
	var err error
	switch {
	case poison:
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = d.Settler.Poison(ctx, driver.NewFault(d, errors.New("bad")))
	case wait:
		err = d.Settler.Redeliver(lateBy)
	default:
		k.mu.Lock()
		k.done[id]++ // before the ack: what follows may be handed out at once
		k.mu.Unlock()
		err = d.Settler.Ack()
	}
	_ = err // a late one is redelivered
}

// publish publishes numbered messages of some keys.
func (k *keyed) publish(transport *amqp.Transport, first, n int, keys ...string) {
	for i := range n {
		for _, key := range keys {
			publishKeyed(k.t, transport, k.topic, fmt.Sprintf("%s/%04d", key, first+i))
			k.mu.Lock()
			k.want = append(k.want, fmt.Sprintf("%s/%04d", key, first+i))
			k.mu.Unlock()
		}
	}
}

func (k *keyed) mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mended = true
}

// missing returns the messages that were published and not handled, without those of some keys.
func (k *keyed) missing(without ...string) (ids []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.want {
		key, _, _ := strings.Cut(id, "/")
		if k.done[id] == 0 && !slices.Contains(without, key) {
			ids = append(ids, id)
		}
	}
	return ids
}

// flows publishes some messages of keys of their own and waits until they are handled.
func (k *keyed) flows(transport *amqp.Transport, round int) {
	k.t.Helper()
	k.publish(transport, 0, 40, fmt.Sprintf("k%da", round), fmt.Sprintf("k%db", round))
	k.awaitDone("bad", "late")
}

func (k *keyed) awaitDone(without ...string) {
	k.t.Helper()
	eventually(k.t, "messages are handled", func() bool { return len(k.missing(without...)) == 0 })
}

// finish replays what is poisoned and expects that every message is handled, in its order.
func (k *keyed) finish(operator *amqp.Transport) {
	k.t.Helper()
	k.mend()
	queue := operator.PoisonQueue(k.sub.Group)
	all, err := queue.List(k.t.Context(), "", 10)
	require.NoError(k.t, err)
	require.NotEmpty(k.t, all)
	for _, p := range all { // a process that is cut off may poison twice
		_, err = queue.Replay(k.t.Context(), p.ID)
		require.NoError(k.t, err)
	}
	k.awaitDone()
	k.mu.Lock()
	defer k.mu.Unlock()
	require.Empty(k.t, k.early, "handed out before the one ahead of it was done")
}

// prepare puts messages into every place where an ordered group has some: poisoned, parked, waiting for a
// time, and behind that.
func (k *keyed) prepare(transport *amqp.Transport) {
	k.t.Helper()
	k.publish(transport, 0, 100, "bad")
	k.publish(transport, 0, 20, "late")
	k.flows(transport, 0)
	eventually(k.t, "they are held", func() bool { return transport.HeldForTest() >= 100 })
}

// A client's node loses contact with those that lead the queues, for a moment: the broker takes back what the
// client has, and sends it again over the same channel.
func TestCluster_losesNothingWhenANodeIsCutOff(t *testing.T) {
	c := ownCluster(t)
	at := c.nodes[2]
	admin := open(t, c.nodes[0].url())
	k := newKeyed(t)
	subscribe(t, admin, k.sub)
	c.follower(t, k.sub.Group, k.sub.Group+".keys", k.sub.Group+".parked.1a")
	transport := open(t, at.url())
	k.consume(transport)
	l := load(t, open(t, at.url()), driver.Unordered)
	k.prepare(transport)
	for round := range 2 {
		l.flows(100)
		c.cut(t, at)
		c.awaitWhole(t)
		k.flows(admin, round+1)
		l.flows(100)
	}
	k.finish(admin)
	l.balance()
	closeAll(t, transport, admin)
	k.workers.Wait()
	c.rejoin(t, at)
}

// Nodes hang and are killed under a load with two processes; LEAT_TEST_LONG=1 runs it.
func TestCluster_losesNothingWhenNodesHangOrDie(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG=1 to hang and kill nodes, which takes minutes")
	}
	c := ownCluster(t)
	for _, fault := range []struct {
		name   string
		inject func(at *broker)
	}{
		{"killed", func(at *broker) {
			at.kill(t)
			c.heal(t)
		}},
		{"hangs for less than a heartbeat", func(at *broker) {
			at.signal(syscall.SIGSTOP)
			<-time.After(time.Second)
			at.signal(syscall.SIGCONT)
		}},
		{"hangs until it is given up", func(at *broker) {
			at.signal(syscall.SIGSTOP)
			<-time.After(25 * time.Second)
			c.heal(t)
		}},
		{"cut off again and again", func(at *broker) {
			for range 5 {
				c.cut(t, at)
				<-time.After(time.Second)
			}
			c.awaitWhole(t)
		}},
	} {
		for _, where := range []string{"the client's", "the queues'"} {
			t.Run(where+" node "+fault.name, func(t *testing.T) {
				admin := open(t, c.nodes[0].url())
				k := newKeyed(t)
				subscribe(t, admin, k.sub)
				at := c.follower(t, k.sub.Group, k.sub.Group+".keys", k.sub.Group+".parked.1a")
				first := open(t, withOptions(at.url(), "heartbeat=3s"))
				k.consume(first)
				k.prepare(first)
				second := open(t, withOptions(c.nodes[1].url(), "heartbeat=3s"))
				k.consume(second)
				victim := at
				if where != "the client's" {
					victim = c.nodes[1]
				}
				publishing := make(chan struct{})
				go func() {
					defer close(publishing)
					k.publish(admin, 0, 300, "x", "y", "z")
				}()
				fault.inject(victim)
				<-publishing
				k.awaitDone("bad", "late")
				k.finish(admin)
				closeAll(t, first, second, admin)
				k.workers.Wait()
				c.rejoin(t, victim)
			})
		}
	}
}
