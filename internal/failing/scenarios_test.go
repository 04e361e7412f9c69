package failing_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
)

const topic = "order.paid.v1"

type orderPaid struct {
	OrderID string `json:"order_id"`
}

func (orderPaid) EventType() (name string, version int) { return "order.paid", 1 }

var errBroken = errors.New("broken")

// scenario is one behaviour, and the function that plays it.
type scenario struct {
	name string
	play func(w *world)
}

var scenarios = []scenario{
	{"an error, quick tries", quickTries},
	{"an error, delayed redelivery", delayedRedelivery},
	{"attempt numbers after a restart of the process", attemptsAfterARestart},
	{"`bus.Permanent`", permanent},
	{"`bus.RetryAfter`", retryAfter},
	{"`bus.Snooze`", snooze},
	{"`bus.Discard`", discard},
	{"a panic", panics},
	{"a timeout", timesOut},
	{"a payload that does not decode", undecodable},
	{"an older version without an upcaster", olderVersion},
	{"a newer version", newerVersion},
	{"another event that matches the pattern", otherEvent},
	{"the poison queue can't be reached", poisonAway},
	{"a replay", replayed},
	{"dedup and a replay", dedupAfterReplay},
	{"the circuit breaker", breaks},
	{"the circuit breaker, where nothing but bad messages is left", breaksForNothing},
	{"the crash limit", crashes},
	{"parking behind a poisoned message", parks},
	{"parking behind an imported message", parksImported},
	{"an imported message, where parking is off", importedWithoutParking},
}

// delays returns a policy of exactly these delays; none of them is waited for in process.
func delays(d ...time.Duration) handlers.Option {
	return handlers.Retry(bus.RetryPolicy{Delays: append([]time.Duration{}, d...), InProcess: -1, Jitter: -1})
}

// raw returns a handler that notes its attempts and does what fn says for each.
func (w *world) raw(fn func(n int, d *bus.Delivery) error, opts ...handlers.Option) bus.Handler {
	var n atomic.Int64
	return handlers.Raw("ledger", []string{topic}, func(ctx context.Context, _ *message.Message) error {
		d := bus.DeliveryFrom(ctx)
		w.note("attempt %d", d.Attempt)
		return fn(int(n.Add(1)), d)
	}, opts...)
}

// fails returns a handler that always returns the error.
func fails(err error) func(int, *bus.Delivery) error {
	return func(int, *bus.Delivery) error { return err }
}

// dead notes the contents of a poison record.
func (w *world) dead(m driver.PoisonedMessage) {
	w.note("poisoned after %d tries in %d deliveries: %s", m.Fault.Tries, m.Fault.Attempts, m.Fault.Text)
}

func quickTries(w *world) {
	p := w.start(w.raw(fails(errBroken), handlers.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Millisecond}})))
	p.publish(topic, "m-1", `{}`)
	w.dead(p.poisoned(1)[0])
}

func delayedRedelivery(w *world) {
	w.untilTelling(300*time.Millisecond, "attempt 2", "another message passes", w.delayedRedelivery)
}

func (w *world) delayedRedelivery(delay time.Duration) {
	var failed time.Time
	p := w.start(handlers.Raw("ledger", []string{topic}, func(ctx context.Context, msg *message.Message) error {
		d := bus.DeliveryFrom(ctx)
		switch {
		case driver.MessageID(msg) == "good":
			w.note("another message passes")
			return nil
		case d.Attempt == 1:
			failed = time.Now()
			w.note("attempt 1")
			return errBroken
		}
		w.note("attempt %d, no earlier than its delay: %t", d.Attempt, time.Since(failed) > delay-10*time.Millisecond)
		return nil
	}, delays(delay), handlers.Concurrency(1)))
	p.publish(topic, "bad", `{}`)
	w.awaitNotes(1)
	p.publish(topic, "good", `{}`)
	w.awaitNotes(3)
	w.await("both handled", func() bool { return p.stats().Handled == 2 })
	p.end()
}

func attemptsAfterARestart(w *world) {
	w.untilTelling(500*time.Millisecond, "attempt 2", "restart", w.attemptsAfterARestart)
}

func (w *world) attemptsAfterARestart(delay time.Duration) {
	p := w.start(w.raw(fails(errBroken), delays(delay, delay)))
	p.publish(topic, "m-1", `{}`)
	w.awaitNotes(1)
	w.await("the redelivery", func() bool { return p.stats().Redelivered == 1 })
	durable := p.Transport().Capabilities().Durable
	p.end()
	w.note("restart")
	if !durable {
		p = w.start(w.raw(fails(errBroken), delays(time.Hour)))
		p.publish(topic, "m-2", `{}`) // the first would come before it
		w.awaitNotes(3)
		w.await("the redelivery", func() bool { return p.stats().Redelivered == 1 })
	} else {
		p = w.start(w.raw(fails(errBroken), delays(delay, delay)))
		w.dead(p.poisoned(1)[0])
	}
	p.end()
}

func permanent(w *world) {
	p := w.start(w.raw(fails(bus.Permanent(errBroken))))
	p.publish(topic, "m-1", `{}`)
	w.dead(p.poisoned(1)[0])
}

func retryAfter(w *world) {
	p := w.start(w.raw(func(n int, _ *bus.Delivery) error {
		if n == 1 {
			return bus.RetryAfter(errBroken, 150*time.Millisecond)
		}
		return nil
	}, delays(time.Millisecond)))
	p.publish(topic, "m-1", `{}`)
	w.await("the end", func() bool { return p.stats().Handled == 1 })
	w.note("handled")
}

func snooze(w *world) {
	p := w.start(w.raw(func(n int, _ *bus.Delivery) error {
		if n <= 3 {
			return bus.Snooze(20 * time.Millisecond)
		}
		return nil
	}, handlers.Retry(bus.OneTry())))
	p.publish(topic, "m-1", `{}`)
	w.await("the end", func() bool { return p.stats().Handled == 1 })
	w.note("handled")
}

func discard(w *world) {
	p := w.start(w.raw(fails(bus.Discard(errBroken))))
	p.publish(topic, "m-1", `{}`)
	w.await("the end", func() bool { return p.stats().Discarded == 1 })
	n, err := p.Transport().PoisonQueue(p.group).Len(context.Background())
	require.NoError(w, err)
	w.note("discarded, %d poisoned", n)
}

func panics(w *world) {
	p := w.start(w.raw(func(int, *bus.Delivery) error { panic("boom") }, handlers.Retry(bus.OneTry())))
	p.publish(topic, "m-1", `{}`)
	m := p.poisoned(1)[0]
	w.dead(m)
	w.note("stack in the record: %t", strings.Contains(m.Fault.Stack, "failing_test.panics"))
}

func timesOut(w *world) {
	p := w.start(handlers.Raw("ledger", []string{topic}, func(ctx context.Context, _ *message.Message) error {
		<-ctx.Done()
		return ctx.Err()
	}, handlers.Timeout(20*time.Millisecond), handlers.Retry(bus.OneTry())))
	p.publish(topic, "m-1", `{}`)
	w.dead(p.poisoned(1)[0])
}

// typed returns a handler that notes its events.
func (w *world) typed() bus.Handler {
	return handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
		w.note("handled %q", e.OrderID)
		return nil
	})
}

func undecodable(w *world) {
	p := w.start(w.typed())
	p.publish(topic, "m-1", `{"order_id":`)
	m := p.poisoned(1)[0]
	_, isSyntax := errors.AsType[*json.SyntaxError](json.Unmarshal(m.Message.Payload, new(orderPaid)))
	w.note("poisoned at once: %s", m.Fault.Class)
	w.note("payload as it was: %t", isSyntax)
}

func olderVersion(w *world) {
	p := w.start(handlers.Func("ledger", func(context.Context, orderPaidV2) error { return nil }))
	p.publish(topic, "m-1", `{"order_id":"1"}`)
	m := p.poisoned(1)[0]
	w.note("poisoned after %d tries in %d deliveries, and the reason names the version: %t", m.Fault.Tries, m.Fault.Attempts, strings.Contains(m.Fault.Text, topic))
}

// orderPaidV2 is the event's next version.
type orderPaidV2 struct {
	OrderID string `json:"order_id"`
}

func (orderPaidV2) EventType() (string, int) { return "order.paid", 2 }

// newerVersion waits for a newer version of the service, here for a moment only.
func newerVersion(w *world) {
	stack := middleware.Standard(middleware.Config{HoldNewer: 500 * time.Millisecond})
	p := w.start(handlers.Func("ledger", func(context.Context, orderPaid) error { return nil }, handlers.Stack(stack)))
	began := time.Now()
	p.publish("order.paid.v2", "m-1", `{"order_id":"1"}`)
	w.await("the health shows it", func() bool { return p.Health()[0].Degraded["newer version"] != "" })
	m := p.poisoned(1)[0]
	waited := m.Fault.At.Sub(began) >= 500*time.Millisecond
	w.note("redelivered at no cost, shown in the health, and poisoned when the wait is over: %t, attempt %d: %s", waited, m.Fault.Attempts, m.Fault.Class)
}

func otherEvent(w *world) {
	p := w.start(w.typed())
	p.publish("order.paid.later", "m-1", `{"order_id":"1"}`)
	w.await("the end", func() bool { return p.stats().Discarded == 1 })
	w.note("discarded, %d poisoned", p.stats().Poisoned)
}

func poisonAway(w *world) {
	p := w.start(handlers.Raw("ledger", []string{topic}, func(_ context.Context, msg *message.Message) error {
		if driver.MessageID(msg) == "bad" {
			return bus.Permanent(errBroken)
		}
		return nil
	}))
	p.publish(topic, "good", `{}`)
	w.await("the group consumes", func() bool { return p.stats().Handled == 1 })
	giveBack := w.takePoisonAway(w, p.Transport(), p.group)
	p.publish(topic, "bad", `{}`)
	w.await("the group is degraded", func() bool { return p.Health()[0].Degraded["poison queue"] != "" })
	p.publish(topic, "better", `{}`)
	w.await("another is handled", func() bool { return p.stats().Handled == 2 })
	w.note("degraded, others are handled, %d poisoned", p.stats().Poisoned)
	giveBack()
	w.dead(p.poisoned(1)[0])
	w.await("the group works", func() bool { return len(p.Health()[0].Degraded) == 0 })
	w.note("works again")
}

func replayed(w *world) {
	var healed atomic.Bool
	payload := "\x00\xff{\"a\":1}\r\n"
	msg := message.NewMessage("m-1", []byte(payload))
	headers := message.Metadata{driver.HeaderID: "m-1", driver.HeaderType: topic, driver.HeaderSource: "test", "tenant": "a=b\n", "leer": "", "Grüße": "世界"}
	msg.Metadata = headers
	p := w.start(handlers.Raw("ledger", []string{topic}, func(ctx context.Context, msg *message.Message) error {
		same := string(msg.Payload) == payload && fmt.Sprint(msg.Metadata) == fmt.Sprint(headers)
		w.note("attempt %d, bytes and headers as published: %t", bus.DeliveryFrom(ctx).Attempt, same)
		msg.Metadata["changed"] = "by the handler"
		if healed.Load() {
			return nil
		}
		return errBroken
	}, delays(time.Millisecond)))
	p.publishMessage(topic, msg.Copy())
	m := p.poisoned(1)[0]
	healed.Store(true)
	w.note("replayed")
	p.replay(m.ID)
	w.await("the end", func() bool { return p.stats().Handled == 1 })
}

func dedupAfterReplay(w *world) {
	var healed atomic.Bool
	p := w.start(w.raw(func(int, *bus.Delivery) error {
		if healed.Load() {
			return nil
		}
		return bus.Permanent(errBroken)
	}))
	p.publish(topic, "m-1", `{}`)
	m := p.poisoned(1)[0]
	healed.Store(true)
	p.replay(m.ID)
	w.await("it is handled", func() bool { return p.stats().Handled == 1 })
	w.note("replayed and handled")
	p.publish(topic, "m-1", `{}`)
	w.await("the duplicate", func() bool { return p.stats().Duplicates == 1 })
	w.note("published again: a duplicate")
}

func breaks(w *world) {
	const n, workers = 15, 5
	var away atomic.Bool
	away.Store(true)
	var begun atomic.Int64
	together := make(chan struct{}) // closed when enough have failed once to see that it is an outage
	p := w.start(handlers.Raw("ledger", []string{topic}, func(ctx context.Context, _ *message.Message) error {
		switch bus.DeliveryFrom(ctx).Try {
		case 2:
			if begun.Add(1) == workers {
				close(together)
			}
		case 3:
			<-together
		}
		if away.Load() {
			return errBroken
		}
		return nil
	}, handlers.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Millisecond}}), handlers.Concurrency(workers),
		handlers.Breaker(bus.BreakerPolicy{Messages: workers, Patience: time.Hour, Probe: 20 * time.Millisecond, MaxProbe: 50 * time.Millisecond})))
	for i := range n {
		p.publish(topic, fmt.Sprintf("m-%d", i), `{}`)
	}
	w.await("a pause", func() bool { return strings.Contains(p.Health()[0].Degraded["circuit breaker"], "every 50ms") })
	w.note("paused, %d poisoned", p.stats().Poisoned)
	away.Store(false)
	w.await("all are handled", func() bool { return p.stats().Handled == n })
	w.await("the group works", func() bool { return len(p.Health()[0].Degraded) == 0 })
	w.note("all handled, works again, %d poisoned", p.stats().Poisoned)
}

// opened counts how often a group has paused.
type opened struct{ times atomic.Int64 }

func (*opened) Published(context.Context, bus.Publication)                   {}
func (*opened) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }
func (*opened) Finished(context.Context, *bus.Delivery, bus.Observation)     {}

func (o *opened) BreakerChanged(c bus.BreakerChange) {
	if c.State == bus.BreakerOpen {
		o.times.Add(1)
	}
}

func breaksForNothing(w *world) {
	const n, workers = 15, 5
	var begun atomic.Int64
	together := make(chan struct{}) // as above
	var pauses opened
	p, err := w.tryStart(bus.Config{Observers: []bus.Observer{&pauses}}, handlers.Raw("ledger", []string{topic}, func(context.Context, *message.Message) error {
		if begun.Add(1) == workers {
			close(together)
		}
		<-together
		return errBroken
	}, handlers.Retry(bus.OneTry()), handlers.Concurrency(workers),
		handlers.Breaker(bus.BreakerPolicy{Messages: workers, Probe: 5 * time.Millisecond, MaxProbe: 10 * time.Millisecond, MaxPause: 50 * time.Millisecond})))
	require.NoError(w, err)
	for i := range n {
		p.publish(topic, fmt.Sprintf("m-%d", i), `{}`)
	}
	p.poisoned(n)
	w.note("paused: %t, poisoned one by one", pauses.times.Load() > 0)
	w.await("the group works", func() bool { return len(p.Health()[0].Degraded) == 0 })
	w.note("works again")
}

// crashes delivers a message repeatedly without an outcome.
func crashes(w *world) {
	for last := 3 * time.Second; ; last *= 3 {
		w.service, w.lines = unique("shop"), nil
		if w.crashes(last) {
			return
		}
	}
}

// crashes redelivers the message after the time last for the last time. It reports whether the receiver was closed before, which a
// busy machine may delay.
func (w *world) crashes(last time.Duration) (closed bool) {
	handled := handlers.Raw("ledger", []string{topic}, func(context.Context, *message.Message) error {
		w.note("handled")
		return nil
	}, handlers.Retry(bus.RetryPolicy{Delays: []time.Duration{}, CrashLimit: 2}))
	p := w.start(handlers.Raw("other", []string{"other.v1"}, func(context.Context, *message.Message) error { return nil })) // so that memory lives on
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sub := driver.Subscription{Group: w.service + ".ledger", Topics: []string{topic}, Known: []string{topic}, Concurrency: 1}
	feed, err := p.Transport().Subscribe(ctx, sub)
	require.NoError(w, err)
	p.publish(topic, "m-1", `{}`)
	var began time.Time
	for _, delay := range []time.Duration{0, 0, last} {
		d, err := feed.Next(ctx)
		require.NoError(w, err)
		began = time.Now()
		require.NoError(w, d.Settler.Redeliver(delay))
	}
	require.NoError(w, feed.Close(ctx))
	closed = time.Since(began) < last
	p = w.start(handled)
	m := p.poisoned(1)[0]
	w.note("poisoned without another try, on delivery %d", m.Fault.Attempts)
	return closed
}

func parks(w *world) {
	var healed atomic.Bool
	if caps := w.capabilities(); !caps.Park {
		w.note("not supported, an error at start")
		return
	}
	p := w.start(handlers.Raw("ledger", []string{topic}, func(_ context.Context, msg *message.Message) error {
		id := driver.MessageID(msg)
		if id == "a1" && !healed.Load() {
			return bus.Permanent(errBroken)
		}
		w.note("%s", id)
		return nil
	}, handlers.OrderedByKey()))
	p.publish(topic, "a1", `{}`, "a")
	m := p.poisoned(1)[0]
	p.publish(topic, "a2", `{}`, "a")
	p.publish(topic, "a3", `{}`, "a")
	p.publish(topic, "b1", `{}`, "b")
	w.await("b1", func() bool { return strings.Contains(w.text(), "b1") })
	healed.Store(true)
	w.note("replayed")
	p.replay(m.ID)
	w.await("the end", func() bool { return p.stats().Handled == 4 })
}

// parksImported writes a message into the poison queue that was exported from another one.
func parksImported(w *world) {
	begun, release := make(chan struct{}), make(chan struct{})
	p := w.start(handlers.Raw("ledger", []string{topic}, func(_ context.Context, msg *message.Message) error {
		id := driver.MessageID(msg)
		if id == "a0" {
			close(begun)
			<-release
		}
		if !strings.HasPrefix(id, "b") {
			w.note("%s", id)
		}
		return nil
	}, handlers.OrderedByKey(), handlers.Concurrency(2)))
	p.publish(topic, "a0", `{}`, "a")
	<-begun
	p.importPoisoned("a1", "a")
	p.publish(topic, "a2", `{}`, "a")
	for i := range uint64(20) { // on RabbitMQ the group's leader hears of it meanwhile
		p.publish(topic, fmt.Sprintf("b%d", i), `{}`, "b")
		w.await("another key", func() bool { return p.stats().Handled == i+1 })
	}
	close(release)
	w.awaitNotes(1)
	p.publish(topic, "c", `{}`, "c")
	w.awaitNotes(2)
	w.note("replayed")
	list, err := p.Transport().PoisonQueue(p.group).List(context.Background(), "", 10)
	require.NoError(w, err)
	require.Len(w, list, 1)
	p.replay(list[0].ID)
	w.await("the end", func() bool { return p.stats().Handled == 24 })
}

// importPoisoned writes a message into the group's poison queue that was exported from another one.
func (p *process) importPoisoned(id, key string) {
	msg := message.NewMessage(id, []byte(`{}`))
	msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "test", driver.HeaderPartitionKey: key}
	driver.Fault{Text: "broken", Group: p.group, Topic: topic, Attempts: 1, At: time.Now()}.Set(msg.Metadata)
	require.NoError(p.w, p.Transport().PoisonQueue(p.group).Put(context.Background(), driver.PoisonedMessage{Message: msg}))
}

func importedWithoutParking(w *world) {
	p := w.start(handlers.Raw("ledger", []string{topic}, func(_ context.Context, msg *message.Message) error {
		w.note("%s", driver.MessageID(msg))
		return nil
	}, handlers.OrderedByKey(), handlers.WithoutParking()))
	p.importPoisoned("a1", "a")
	p.publish(topic, "a2", `{}`, "a")
	w.awaitNotes(1)
	list, err := p.Transport().PoisonQueue(p.group).List(context.Background(), "", 10)
	require.NoError(w, err)
	p.replay(list[0].ID)
	w.await("the end", func() bool { return p.stats().Handled == 2 })
}
