//go:build unix

package amqp_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// A poisoned message holds back its key, whatever becomes of the processes, until an operator elsewhere
// replays or drops it.
func TestPark_keysOutliveTheirProcesses(t *testing.T) {
	b := ownBroker(t)
	together := b.together(2, b.stop)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		restart := together(t)
		c := newCrew(t, raw, driver.OrderedByKey)
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
		restart()
		c.kill(0)
		c.kill(0)
		c.publish("k00/" + fmt.Sprintf("%04d", each))
		c.publish("k09/" + fmt.Sprintf("%04d", each))
		c.awaitDone(keys*each - parked + 1)

		// The first fails again; then all is mended.
		list := func() []driver.PoisonedMessage {
			all, err := queue.List(t.Context(), "", 100)
			require.NoError(t, err)
			return all
		}
		first := func() string {
			for _, p := range list() {
				if driver.PartitionKey(p.Message) == "k00" {
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
			if driver.PartitionKey(p.Message) == "k01" {
				dropped = driver.MessageID(p.Message)
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

// One parked key costs the others nothing that can be measured. It takes its time, and the machine.
func TestPark_oneKeyCostsOthersNothing(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG to measure")
	}
	const keys, each = 1000, 120
	eachQueue(t, sharedBroker(t), func(t *testing.T, raw string) {
		measure := func(poisoned int) float64 {
			transport := open(t, raw)
			defer closeAll(t, transport)
			topic := unique("order.paid.v1")
			feed := subscribe(t, transport, driver.Subscription{
				Group: unique("ledger"), Topics: []string{topic}, Concurrency: 100, Order: driver.OrderedByKey, Park: true,
			})
			var msgs []*message.Message
			for i := range each {
				for k := range keys {
					msg := newMessage(topic, fmt.Sprintf("%d/%d", k, i))
					msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprint(k)
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
						if poisoned > 0 && driver.MessageID(d.Message) == "0/0" {
							_ = d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("broken")))
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
