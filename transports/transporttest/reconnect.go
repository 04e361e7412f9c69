package transporttest

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testReconnect tests promise 9.
func testReconnect(t *testing.T, h Harness) {
	if h.Restart == nil {
		t.Skip("no message system to restart")
	}
	w := newWorld(t, h)
	transport := w.open()
	topic := w.topic("order.paid.v1")
	sub := w.subscription("ledger", topic)
	sub.Concurrency = 4
	receiver := w.subscribe(transport, sub)
	sheet := newIDCounter()
	w.consume(receiver, 4, func(d *driver.Delivery) {
		if driver.MessageID(d.Message) == "" || len(d.Message.Payload) == 0 {
			w.Errorf("an empty message was handed out")
		}
		sheet.add(driver.MessageID(d.Message))
		_ = d.Settler.Ack() // a message that can't be acked is redelivered
	})

	accepted := newIDCounter()
	var stop atomic.Bool
	published := make(chan int)
	go func() {
		i := 0
		for ; !stop.Load(); i++ {
			id := fmt.Sprintf("m-%06d", i)
			if transport.Publish(w.ctx, topic, newMessage(topic, id)) == nil {
				accepted.add(id)
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // a pace, not a wait
		}
		published <- i
	}()
	w.eventually("it works before", func() bool { return sheet.len() > 50 })
	h.Restart(t)
	beforeEnd := accepted.len()
	w.eventually("publishing works again", func() bool { return accepted.len() > beforeEnd+50 })
	stop.Store(true)
	tried := <-published
	require.Equal(t, tried, accepted.len(), "a publisher should wait for the message system, not fail")
	w.eventually("everything accepted is handled", func() bool {
		counts := sheet.counts()
		for id := range accepted.counts() {
			if counts[id] == 0 {
				return false
			}
		}
		return true
	})
}
