package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/amqp"
)

// amqpWorld is one RabbitMQ with unique names. leat is compared with raw amqp091-go (the floor) and with
// Watermill's AMQP Pub/Sub.
type amqpWorld struct {
	tb     testing.TB
	broker string
	prefix string
	conn   *rabbit.Connection
}

func newAMQPWorld(tb testing.TB) *amqpWorld { return newAMQPWorldAt(tb, testenv.RabbitMQ(tb)) }

func newAMQPWorldAt(tb testing.TB, broker string) *amqpWorld {
	conn, err := rabbit.Dial(broker)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return &amqpWorld{tb: tb, broker: broker, prefix: fmt.Sprintf("bench%08x", rand.Uint32()), conn: conn}
}

func (w *amqpWorld) channel() *rabbit.Channel {
	ch, err := w.conn.Channel()
	require.NoError(w.tb, err)
	return ch
}

// queue declares a quorum queue as leat's groups have.
func (w *amqpWorld) queue(name string) string {
	name = w.prefix + "." + name
	_, err := w.channel().QueueDeclare(name, true, false, false, false, rabbit.Table{"x-queue-type": "quorum"})
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() { w.remove(name) })
	return name
}

func (w *amqpWorld) remove(queue string) { _, _ = w.channel().QueueDelete(queue, false, false, false) }

// purge empties a queue between rounds.
func (w *amqpWorld) purge(queue string) {
	_, err := w.channel().QueuePurge(queue, false)
	require.NoError(w.tb, err)
}

func (w *amqpWorld) open() *amqp.Transport {
	u, err := url.Parse(w.broker)
	require.NoError(w.tb, err)
	cfg, err := amqp.ConfigFromURL(u)
	require.NoError(w.tb, err)
	cfg.Logger = slog.New(slog.DiscardHandler)
	transport, err := amqp.New(context.Background(), cfg)
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = transport.Close(ctx)
	})
	return transport
}

// group creates a group's queues without consuming.
func (w *amqpWorld) group(transport *amqp.Transport, name, topic string) string {
	group := w.prefix + "." + name
	_, err := transport.Subscribe(context.Background(), driver.Subscription{Group: group, Topics: []string{topic}, Known: []string{topic}, Concurrency: 1})
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() {
		w.remove(group)
		w.remove(group + ".poison")
	})
	return group
}

// amqpMessage returns the message that the bus publishes for an event.
func amqpMessage(i int) *message.Message {
	e := newOrder(i)
	payload, _ := json.Marshal(e)
	id := bus.NewID()
	return &message.Message{UUID: id, Payload: payload, Metadata: message.Metadata{
		driver.HeaderID: id, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "bench", driver.HeaderTime: time.Now().UTC().Format(time.RFC3339Nano),
		driver.HeaderContentType: "application/json", driver.HeaderCorrelationID: id,
		driver.HeaderTraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}}
}

// rawPublishing returns the same message for the floor, marshaled as by leat.
func rawPublishing(i int) rabbit.Publishing {
	msg := amqpMessage(i)
	h := rabbit.Table{}
	for name, value := range msg.Metadata {
		h[name] = value
	}
	return rabbit.Publishing{MessageId: msg.UUID, Headers: h, Body: msg.Payload, DeliveryMode: rabbit.Persistent}
}

// BenchmarkAMQPPublish publishes confirmed: from 64 goroutines, and from one in slices of 100. The peer is
// Watermill's publisher with confirmations and a pool of one channel, and of 64.
func BenchmarkAMQPPublish(b *testing.B) { publishOverAMQP(b, newAMQPWorld(b), 800) }

// BenchmarkAMQPPublishFar does the same with a round trip to the broker of a millisecond, as between
// machines.
func BenchmarkAMQPPublishFar(b *testing.B) {
	u, err := url.Parse(testenv.RabbitMQ(b))
	require.NoError(b, err)
	u.Host = distance(b, u.Host, time.Millisecond/2)
	publishOverAMQP(b, newAMQPWorldAt(b, u.String()), 200)
}

// publishOverAMQP compares publishers. Slow ones publish fewer messages.
func publishOverAMQP(b *testing.B, w *amqpWorld, stockN int) {
	const n, goroutines, slice = 6_400, 64, 100
	transport := w.open()
	topic := w.prefix + ".order.paid.v1"
	group := w.group(transport, "ledger", topic)
	pool1, pool64 := w.stockPublisher(1), w.stockPublisher(64)
	peer, peerQueue := "peer."+w.prefix, w.queue("peer")
	require.NoError(b, w.channel().ExchangeDeclare(peer, "fanout", true, false, false, false, nil))
	require.NoError(b, w.channel().QueueBind(peerQueue, "", peer, false, nil))
	w.tb.Cleanup(func() { _ = w.channel().ExchangeDelete(peer, false, false) })

	raw := w.channel()
	require.NoError(b, raw.Confirm(false))
	rawOne := func(i int) *rabbit.DeferredConfirmation {
		c, err := raw.PublishWithDeferredConfirm("events", topic, true, false, rawPublishing(i)) // to the same queue
		require.NoError(b, err)
		return c
	}
	ctx := context.Background()
	oneByOne := func(n int, publish func(msgs ...*message.Message) error) func() {
		return func() { spread(goroutines, n, func(i int) { require.NoError(b, publish(amqpMessage(i))) }) }
	}
	inSlices := func(n int, publish func(msgs ...*message.Message) error) func() {
		return func() {
			for range n / slice {
				require.NoError(b, publish(amqpMessages(slice)...))
			}
		}
	}
	leat := func(msgs ...*message.Message) error { return transport.Publish(ctx, topic, msgs...) }
	stock1 := func(msgs ...*message.Message) error { return pool1.Publish(peer, msgs...) }
	stock64 := func(msgs ...*message.Message) error { return pool64.Publish(peer, msgs...) }
	r := newRounds(b, func() {
		w.purge(peerQueue)
		w.purge(group)
	})
	r.add("raw-64", n, func() { spread(goroutines, n, func(i int) { rawOne(i).Wait() }) })
	r.add("leat-64", n, oneByOne(n, leat))
	r.add("stock-pool1-64", stockN, oneByOne(stockN, stock1))
	r.add("stock-pool64-64", n, oneByOne(n, stock64))
	r.add("raw-slices", n, func() {
		for range n / slice {
			confirmations := make([]*rabbit.DeferredConfirmation, slice)
			for i := range confirmations {
				confirmations[i] = rawOne(i)
			}
			for _, c := range confirmations {
				c.Wait()
			}
		}
	})
	r.add("leat-slices", n, inSlices(n, leat))
	r.add("stock-pool1-slices", stockN, inSlices(stockN, stock1))
	r.run()
	r.ratio("leat-64", "raw-64")
	r.ratio("leat-64", "stock-pool1-64")
	r.ratio("leat-64", "stock-pool64-64")
	r.ratio("leat-slices", "raw-slices")
	r.ratio("leat-slices", "stock-pool1-slices")
}

// rounds measures several functions alternately, so that other load on the machine affects all of them.
type rounds struct {
	b       *testing.B
	between func()
	names   []string
	counts  map[string]int
	do      map[string]func()
	rates   map[string][]float64
}

func newRounds(b *testing.B, between func()) *rounds {
	return &rounds{b: b, between: between, counts: make(map[string]int), do: make(map[string]func()), rates: make(map[string][]float64)}
}

// add adds a function that handles n messages.
func (r *rounds) add(name string, n int, do func()) {
	r.names = append(r.names, name)
	r.counts[name], r.do[name] = n, do
}

func (r *rounds) run() {
	for r.b.Loop() {
		for _, name := range r.names {
			began := time.Now()
			r.do[name]()
			r.rates[name] = append(r.rates[name], float64(r.counts[name])/time.Since(began).Seconds())
			r.between()
		}
	}
	for _, name := range r.names {
		r.b.Logf("%-22s %8.0f msg/s", name, median(r.rates[name]))
	}
}

// ratio reports the median of the rounds' ratios.
func (r *rounds) ratio(ours, theirs string) {
	ratios := make([]float64, len(r.rates[ours]))
	for i := range ratios {
		ratios[i] = r.rates[ours][i] / r.rates[theirs][i]
	}
	r.b.ReportMetric(median(ratios), ours+"/"+theirs)
}

func amqpMessages(n int) []*message.Message {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = amqpMessage(i)
	}
	return msgs
}

// spread calls do n times from g goroutines.
func spread(g, n int, do func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range g {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				do(int(i))
			}
		})
	}
	wg.Wait()
}

// stockPublisher is Watermill's publisher with confirmations and a pool of channels.
func (w *amqpWorld) stockPublisher(channels int) message.Publisher {
	cfg := stock.NewDurablePubSubConfig(w.broker, stock.GenerateQueueNameTopicNameWithSuffix("ledger"))
	cfg.Publish.ConfirmDelivery, cfg.Publish.ChannelPoolSize = true, channels
	publisher, err := stock.NewPublisher(cfg, watermill.NopLogger{})
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() { _ = publisher.Close() })
	return publisher
}

// BenchmarkAMQPConsume consumes a full queue: leat with its whole standard stack and a concurrency of
// 100, raw with a prefetch of 500, 100 workers and acks for 100 messages at once, and one subscription of
// Watermill's. The handler does nothing, or takes 5 ms.
func BenchmarkAMQPConsume(b *testing.B) {
	for _, c := range []struct {
		name      string
		n, stockN int
		work      time.Duration
	}{{"trivial", 60_000, 15_000, 0}, {"5ms", 20_000, 200, 5 * time.Millisecond}} {
		b.Run(c.name, func(b *testing.B) {
			w := newAMQPWorld(b)
			rates := make(map[string][]float64)
			var toRaw, toStock []float64
			for b.Loop() {
				floor, leat, peer := w.rawConsume(c.n, c.work), w.leatConsume(c.n, c.work), w.stockConsume(c.stockN, c.work)
				rates["raw"], rates["leat"], rates["stock"] = append(rates["raw"], floor), append(rates["leat"], leat), append(rates["stock"], peer)
				toRaw, toStock = append(toRaw, leat/floor), append(toStock, leat/peer)
			}
			for _, name := range []string{"raw", "leat", "stock"} {
				b.ReportMetric(median(rates[name]), name+"-msg/s")
			}
			b.ReportMetric(median(toRaw), "leat/raw")
			b.ReportMetric(median(toStock), "leat/stock")
		})
	}
}

// stockConsume is one subscription of Watermill's durable queue, on a quorum queue as the others have.
func (w *amqpWorld) stockConsume(n int, work time.Duration) float64 {
	name := fmt.Sprintf("stock%d", rand.Uint32())
	queue := w.queue(name)
	defer w.remove(queue)
	w.fill(queue, n)
	cfg := stock.NewDurableQueueConfig(w.broker)
	cfg.Queue.Arguments = rabbit.Table{"x-queue-type": "quorum"}
	cfg.Consume.Qos.PrefetchCount = 100
	subscriber, err := stock.NewSubscriber(cfg, watermill.NopLogger{})
	require.NoError(w.tb, err)
	msgs, err := subscriber.Subscribe(context.Background(), queue)
	require.NoError(w.tb, err)
	var began time.Time
	for i := range n {
		msg := <-msgs
		if i == warmUp(n) {
			began = time.Now()
		}
		var e orderPaid
		_ = json.Unmarshal(msg.Payload, &e)
		if work > 0 {
			time.Sleep(work)
		}
		msg.Ack()
	}
	rate := float64(n-warmUp(n)) / time.Since(began).Seconds()
	require.NoError(w.tb, subscriber.Close())
	return rate
}

// fill publishes messages to a queue, with confirmations.
func (w *amqpWorld) fill(queue string, n int) {
	ch := w.channel()
	defer func() { _ = ch.Close() }()
	require.NoError(w.tb, ch.Confirm(false))
	confirmations := make([]*rabbit.DeferredConfirmation, n)
	for i := range confirmations {
		var err error
		confirmations[i], err = ch.PublishWithDeferredConfirm("", queue, true, false, rawPublishing(i))
		require.NoError(w.tb, err)
	}
	for _, c := range confirmations {
		c.Wait()
	}
}

// warmUp is the number of messages before the measurement: leat fetches one message before it fetches many.
func warmUp(n int) int { return n / 20 }

func (w *amqpWorld) rawConsume(n int, work time.Duration) float64 {
	queue := w.queue(fmt.Sprintf("floor%d", rand.Uint32()))
	defer w.remove(queue)
	w.fill(queue, n)

	ch := w.channel()
	defer func() { _ = ch.Close() }()
	require.NoError(w.tb, ch.Qos(500, 0, false))
	began := time.Now()
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	require.NoError(w.tb, err)
	var wg sync.WaitGroup
	done := make(chan uint64, 1000)
	for range 100 {
		wg.Go(func() {
			for d := range deliveries {
				var e orderPaid
				_ = json.Unmarshal(d.Body, &e)
				if work > 0 {
					time.Sleep(work)
				}
				done <- d.DeliveryTag
			}
		})
	}
	settled, upTo, acked := make(map[uint64]bool), uint64(0), uint64(0)
	for i := range n {
		settled[<-done] = true
		if i == warmUp(n) {
			began = time.Now()
		}
		for settled[upTo+1] {
			delete(settled, upTo+1)
			upTo++
		}
		if upTo-acked >= 100 || upTo == uint64(n) {
			_ = ch.Ack(upTo, true)
			acked = upTo
		}
	}
	rate := float64(n-warmUp(n)) / time.Since(began).Seconds()
	_ = ch.Close()
	wg.Wait()
	return rate
}

func (w *amqpWorld) leatConsume(n int, work time.Duration) float64 {
	transport := w.open()
	service := fmt.Sprintf("%s-%d", w.prefix, rand.Uint32())
	topic := "order.paid.v1"
	exchangeTopic := service + ".ledger"
	defer w.remove(exchangeTopic)
	defer w.remove(exchangeTopic + ".poison")
	_, err := transport.Subscribe(context.Background(), driver.Subscription{Group: exchangeTopic, Topics: []string{topic}, Known: []string{topic}, Concurrency: 1})
	require.NoError(w.tb, err)
	require.NoError(w.tb, transport.Publish(context.Background(), topic, amqpMessages(n)...))

	consumer := w.open()
	b, err := bus.New(consumer, bus.Config{Service: service, Stack: middleware.Standard(middleware.Config{})})
	require.NoError(w.tb, err)
	var handled atomic.Int64
	var began time.Time
	all := make(chan struct{})
	require.NoError(w.tb, b.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error {
		if work > 0 {
			time.Sleep(work)
		}
		switch handled.Add(1) {
		case int64(warmUp(n)):
			began = time.Now()
		case int64(n):
			close(all)
		}
		return nil
	}, handlers.Concurrency(100))))
	go func() { _ = b.Run(context.Background()) }()
	<-all
	rate := float64(n-warmUp(n)) / time.Since(began).Seconds()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(w.tb, b.Close(ctx))
	return rate
}

// BenchmarkAMQPLatency measures the time from Publish to the handler at 1,000 confirmed messages per second each. Both run at
// the same time, so that other load on the machine affects both percentiles.
func BenchmarkAMQPLatency(b *testing.B) {
	w := newAMQPWorld(b)
	var r50, r99 []float64
	for b.Loop() {
		var floor50, floor99, leat50, leat99 time.Duration
		var both sync.WaitGroup
		both.Go(func() { floor50, floor99 = w.rawLatency(3 * time.Second) })
		both.Go(func() { leat50, leat99 = w.leatLatency(3 * time.Second) })
		both.Wait()
		b.Logf("raw p50 %s p99 %s, leat p50 %s p99 %s", floor50, floor99, leat50, leat99)
		r50, r99 = append(r50, float64(leat50)/float64(floor50)), append(r99, float64(leat99)/float64(floor99))
	}
	b.ReportMetric(median(r50), "leat/raw-p50")
	b.ReportMetric(median(r99), "leat/raw-p99")
}

// paced calls do a thousand times a second.
func paced(during time.Duration, do func()) (n int) {
	began := time.Now()
	for ; time.Since(began) < during; n++ {
		if wait := time.Until(began.Add(time.Duration(n) * time.Millisecond)); wait > 0 {
			time.Sleep(wait)
		}
		do()
	}
	return n
}

func percentiles(latencies []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(latencies)
	return latencies[len(latencies)/2], latencies[len(latencies)*99/100]
}

func (w *amqpWorld) rawLatency(during time.Duration) (p50, p99 time.Duration) {
	queue := w.queue(fmt.Sprintf("latency%d", rand.Uint32()))
	defer w.remove(queue)
	out, in := w.channel(), w.channel()
	require.NoError(w.tb, out.Confirm(false))
	require.NoError(w.tb, in.Qos(100, 0, false))
	deliveries, err := in.Consume(queue, "", false, false, false, false, nil)
	require.NoError(w.tb, err)
	var latencies []time.Duration
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for d := range deliveries {
			var e orderPaid
			_ = json.Unmarshal(d.Body, &e)
			latencies = append(latencies, time.Duration(time.Now().UnixNano()-e.Sent))
			_ = d.Ack(false)
		}
	}()
	paced(during, func() {
		c, _ := out.PublishWithDeferredConfirm("", queue, true, false, rawPublishing(0))
		go c.Wait()
	})
	time.Sleep(100 * time.Millisecond)
	_ = in.Close()
	_ = out.Close()
	<-consumed
	return percentiles(latencies)
}

func (w *amqpWorld) leatLatency(during time.Duration) (p50, p99 time.Duration) {
	transport := w.open()
	topic := fmt.Sprintf("%s.latency%d.v1", w.prefix, rand.Uint32())
	group := w.prefix + ".latency"
	feed, err := transport.Subscribe(context.Background(), driver.Subscription{Group: group, Topics: []string{topic}, Known: []string{topic}, Concurrency: 8})
	require.NoError(w.tb, err)
	defer w.remove(group)
	defer w.remove(group + ".poison")
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var latencies []time.Duration
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				d, err := feed.Next(ctx)
				if err != nil {
					return
				}
				var e orderPaid
				_ = json.Unmarshal(d.Message.Payload, &e)
				mu.Lock()
				latencies = append(latencies, time.Duration(time.Now().UnixNano()-e.Sent))
				mu.Unlock()
				_ = d.Settler.Ack()
			}
		})
	}
	var publishing sync.WaitGroup
	paced(during, func() {
		msg := amqpMessage(0)
		publishing.Go(func() { _ = transport.Publish(ctx, topic, msg) })
	})
	publishing.Wait()
	time.Sleep(100 * time.Millisecond)
	cancel()
	wg.Wait()
	return percentiles(latencies)
}
