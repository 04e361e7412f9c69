package amqp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
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

// hostileHeaders are what a producer may write to mislead a consumer, by a name for each.
func hostileHeaders(victim string) map[string]rabbit.Table {
	all := map[string]rabbit.Table{"deep": deepTable(33), "wide": wideTable(8193), "bytes": {"\xff\xfe": "\xc3\x28"}, "topic": {"leat-topic": strings.Repeat("t", 60_000)}}
	for _, n := range []int64{math.MinInt64, -1, math.MaxInt64} {
		counts := make(rabbit.Table)
		for _, name := range []string{"leat-attempt", "leat-crashes", "x-delivery-count", "x-acquired-count", "leat-poison-rev", "leat-held-place", "leat-held-rev", "leat-held-until", "leat-due"} {
			counts[name] = n
		}
		counts["x-death"] = []any{rabbit.Table{"queue": victim, "count": n, "reason": "expired"}}
		all[fmt.Sprint("counts ", n)] = counts
	}
	for _, name := range []string{
		"leat-key", "leat-queue", "leat-delay-to", "leat-topic", "leat-extra", "leat-version", "leat-own", "leat-user-id", "leat-deaths", "leat-pilot",
		"leat-poison-id", "leat-held-key", "leat-held-note", "leat-held-print", "leat_instance", "leat_fault_error", "leat_fault_topic", "leat_fault_failed_at",
		"leat_fault_failures", "leat_deliver_at", "CC", "BCC", "amqp_user_id", "_watermill_message_uuid",
	} {
		all["text in "+name] = rabbit.Table{name: victim}
		all["list in "+name] = rabbit.Table{name: []any{victim, int64(math.MinInt64)}}
	}
	delete(all, "text in CC") // the broker itself refuses these two, and routes by the lists
	delete(all, "text in BCC")
	delete(all, "list in CC")
	delete(all, "list in BCC")
	for size := 130_990; size < 131_030; size += 8 {
		all[fmt.Sprint("filled ", size)] = rabbit.Table{"x": strings.Repeat("x", size)}
	}
	return all
}

// A producer who may write to the exchange and nowhere else sends all that is hostile, and then good messages. The good
// ones are handled, each of the others is in the poison queue with a reason, and nothing is published anywhere else.
// LEAT_TEST_LONG=1 sends 200 bodies of 10 MB in place of 20.
func TestSoak_hostileProducer(t *testing.T) {
	bodies := 20
	if os.Getenv("LEAT_TEST_LONG") != "" {
		bodies = 200
	}
	raw := testenv.RabbitMQ(t)
	transport := open(t, raw)
	service, prefix := unique("shop"), unique("soak")
	b, err := bus.New(transport, bus.Config{Service: service, Stack: middleware.Standard(middleware.Config{})})
	require.NoError(t, err)
	var mu sync.Mutex
	good := make(map[string]int)
	slow := make(chan struct{}) // open while the large bodies come, so that they wait here if anything lets them
	handler := handlers.Raw("ledger", []string{prefix + ".>"}, func(_ context.Context, msg *message.Message) error {
		if len(msg.Payload) > 1<<20 {
			<-slow
		}
		var event struct{ Good string }
		if err := json.Unmarshal(msg.Payload, &event); err != nil {
			return bus.Permanent(err)
		}
		mu.Lock()
		defer mu.Unlock()
		good[event.Good]++
		return nil
	})
	require.NoError(t, b.Handle(handler))
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	group := b.GroupName("ledger")
	eventually(t, "the group is there", func() bool { return len(transport.QueuesForTest()) > 0 })

	var most uint64
	watching, watched := make(chan struct{}), make(chan struct{})
	runtime.GC()
	go func() {
		defer close(watched)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse+m.StackInuse)
			select {
			case <-tick.C:
			case <-watching:
				return
			}
		}
	}()

	bad := make(map[string]bool)
	withBroker(t, raw, func(ch *rabbit.Channel) {
		victim := unique("victim")
		_, err := ch.QueueDeclare(victim, false, true, true, false, nil)
		require.NoError(t, err)
		watcher := unique("watcher") // gets a copy of all that is published to the exchange
		_, err = ch.QueueDeclare(watcher, false, true, true, false, rabbit.Table{"x-max-length-bytes": 1 << 20})
		require.NoError(t, err)
		require.NoError(t, ch.Confirm(false))
		send := func(key, id string, headers rabbit.Table, body []byte) {
			confirm, err := ch.PublishWithDeferredConfirm("events", key, true, false, rabbit.Publishing{MessageId: id, Headers: headers, Body: body})
			require.NoError(t, err)
			require.True(t, confirm.Wait(), id)
		}
		hostile := func(key, id string, headers rabbit.Table, body []byte) {
			withBroker(t, raw, func(own *rabbit.Channel) {
				require.NoError(t, own.Confirm(false))
				confirm, err := own.PublishWithDeferredConfirm("events", key, true, false, rabbit.Publishing{MessageId: id, Headers: headers, Body: body})
				require.NoError(t, err)
				if confirm.Wait() {
					bad[id] = true
				} else {
					t.Logf("the broker refuses %q", id)
				}
			})
		}
		for name, headers := range hostileHeaders(victim) {
			hostile(prefix+".a", name, headers, []byte("no json"))
		}
		hostile(prefix+".\xff\xfe\x1b[2J", "routing key", nil, []byte("no json"))
		hostile(prefix+"."+strings.Repeat("k", 200), "long routing key", nil, []byte("no json"))
		large := make([]byte, 10_000_000)
		var confirms []*rabbit.DeferredConfirmation
		for i := range bodies { // all at once
			id := fmt.Sprint("body ", i)
			confirm, err := ch.PublishWithDeferredConfirm("events", prefix+".a", true, false, rabbit.Publishing{MessageId: id, Body: large})
			require.NoError(t, err)
			confirms, bad[id] = append(confirms, confirm), true
		}
		for _, confirm := range confirms {
			require.True(t, confirm.Wait())
		}
		close(slow)
		require.NoError(t, ch.QueueBind(watcher, "#", "events", false, nil))
		const n = 1000
		for i := range n {
			send(prefix+".a", fmt.Sprint("good ", i), nil, []byte(fmt.Sprintf(`{"Good":"%d"}`, i)))
		}
		eventually(t, "the good ones are handled", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(good) == n
		})
		eventually(t, "the bad ones are poisoned", func() bool { return depth(t, raw, group+".poison") == len(bad) })
		q, err := ch.QueueDeclarePassive(victim, false, true, true, false, nil)
		require.NoError(t, err)
		require.Zero(t, q.Messages, "nothing goes where a producer wants it to")
		copies := 0
		for { // others use the exchange, too
			d, ok, err := ch.Get(watcher, true)
			require.NoError(t, err)
			if !ok {
				break
			}
			if strings.HasPrefix(d.RoutingKey, prefix) {
				copies++
			}
		}
		require.Equal(t, n, copies, "nothing else is published")
	})
	close(watching)
	<-watched
	t.Logf("%d MiB of memory at most", most>>20)
	require.Less(t, most, uint64(128<<20))
	mu.Lock()
	for id, times := range good {
		require.Equal(t, 1, times, id)
	}
	mu.Unlock()
	require.NoError(t, transport.PoisonQueue(group).(driver.PoisonWalker).Walk(t.Context(), func(p driver.PoisonedMessage) error {
		want := "invalid character"
		if id := p.Message.UUID; id == "deep" || id == "wide" {
			want = "can't be read"
		}
		if p.Fault.Text == "" || !strings.Contains(p.Fault.Text, want) {
			t.Errorf("%q: the reason is %q", p.Message.UUID, p.Fault.Text)
		}
		return nil
	}))
	require.Zero(t, transport.Health().Reconnects)
	stop()
	require.NoError(t, <-ran)
	require.NoError(t, b.Close(context.Background()))
}
