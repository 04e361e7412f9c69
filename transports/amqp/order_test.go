//go:build unix

package amqp_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// Order by key holds over lost connections: what comes again comes before what has not come yet.
func TestOrder_byKeyOutlivesLostConnections(t *testing.T) {
	b := ownBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		transport := open(t, raw)
		topic := unique("order.paid.v1")
		feed := subscribe(t, transport, driver.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 16, Order: driver.OrderedByKey,
		})
		const keys, each = 12, 150
		var publishers sync.WaitGroup
		for k := range keys {
			publishers.Go(func() {
				for i := range each {
					msg := newMessage(topic, fmt.Sprintf("k%02d/%04d", k, i))
					msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprint(k)
					if err := transport.Publish(t.Context(), topic, msg); err != nil {
						t.Errorf("publish: %v", err)
					}
				}
			})
		}
		publishers.Wait() // so that there is a backlog to be fetched, and given back
		var mu sync.Mutex
		out, last := make(map[string]string), make(map[string]string)
		handled := make(map[string]bool)
		var workers sync.WaitGroup
		for range 16 {
			workers.Go(func() {
				for {
					d, err := feed.Next(t.Context())
					if err != nil {
						return
					}
					id := driver.MessageID(d.Message)
					key, _, _ := strings.Cut(id, "/")
					mu.Lock()
					if other := out[key]; other != "" {
						t.Errorf("%s was handed out while %s was", id, other)
					}
					out[key] = id
					if !handled[id] && id < last[key] {
						t.Errorf("%s came after %s", id, last[key])
					}
					handled[id], last[key] = true, max(last[key], id)
					mu.Unlock()
					<-time.After(15 * time.Millisecond)
					mu.Lock()
					out[key] = ""
					mu.Unlock()
					_ = d.Settler.Ack()
				}
			})
		}
		done := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(handled)
		}
		for range 3 {
			before := done()
			b.closeConnections(t)
			eventually(t, "work goes on", func() bool { return done() >= before+keys*each/10 })
		}
		eventually(t, "all is handled", func() bool { return done() == keys*each })
		closeAll(t, transport)
		workers.Wait()
		require.Len(t, handled, keys*each)
	})
}

// Order holds over three processes that are killed, most of them while they lead, and messages that
// fail meanwhile.
func TestOrder_outlivesKillsAndRedeliveries(t *testing.T) {
	kills := 2
	if s := os.Getenv("LEAT_TEST_KILLS"); s != "" {
		kills, _ = strconv.Atoi(s)
	}
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		c := newCrew(t, raw, driver.OrderedByKey)
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
