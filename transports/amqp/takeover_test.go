//go:build unix

package amqp_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// A new leader hands out nothing before the queue of held messages has noticed the end of the last one: what
// that one had would come behind what is new.
func TestALeaderWaitsForTheEndOfTheLast(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := bus.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: bus.OrderedByKey}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1", "a/2")
		require.NoError(t, next(t, feed).Settler.Redeliver(2*time.Second))
		eventually(t, "both are held", func() bool { return first.HeldForTest() == 2 })
		closeAll(t, first)

		withBroker(t, raw, func(ch *rabbit.Channel) { // as the last leader, whose end was not noticed yet
			require.NoError(t, ch.Qos(3, 0, false))
			held, err := ch.Consume(group+".held", "", false, false, false, false, nil)
			require.NoError(t, err)
			for range 3 { // with the note that it ended in peace
				<-held
			}
			second := open(t, raw)
			feed = subscribe(t, second, sub)
			publishKeyed(t, second, topic, "a/3")
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err = feed.Next(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded, "it came too early")
			require.NoError(t, ch.Close())
			for _, id := range []string{"a/1", "a/2", "a/3"} {
				require.Equal(t, id, take(t, feed))
			}
			closeAll(t, second)
		})
	})
}

// A handler that takes longer than the broker waits for an ack: the group goes on, nothing is lost, and the
// log names the cure.
func TestAHandlerThatOutlastsTheConsumerTimeout(t *testing.T) {
	b := ownBroker(t)
	setting := func(name, value string) {
		b.ctl(t, "eval", "application:set_env(rabbit, "+name+", "+value+").")
	}
	setting("consumer_timeout", "1000")
	setting("channel_tick_interval", "300")
	defer setting("consumer_timeout", "1800000")
	defer setting("channel_tick_interval", "60000")
	for _, order := range []bus.Order{bus.Unordered, bus.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			bothQueues(t, b.url(), func(t *testing.T, raw string) {
				u, err := url.Parse(raw)
				require.NoError(t, err)
				cfg, err := amqp.ConfigFromURL(u)
				require.NoError(t, err)
				log := new(safeBuffer)
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
				transport, err := amqp.New(t.Context(), cfg)
				require.NoError(t, err)
				t.Cleanup(func() { cleanUp(t, raw, transport.QueuesForTest()) })
				topic := unique("order.paid.v1")
				feed := subscribe(t, transport, bus.Subscription{
					Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4, Order: order,
				})
				var ticks sync.WaitGroup
				over := make(chan struct{})
				ticks.Go(func() { // an ordered group renews what it holds, else within minutes
					for {
						select {
						case <-time.After(100 * time.Millisecond):
							transport.TickForTest()
						case <-over:
							return
						}
					}
				})
				defer func() {
					close(over)
					ticks.Wait()
				}()
				publishKeyed(t, transport, topic, "a/1", "b/1")
				slow := next(t, feed)
				for bus.MessageID(slow.Message) != "a/1" {
					ack(t, slow)
					slow = next(t, feed)
				}
				eventually(t, "the log says what happened", func() bool { return strings.Contains(log.String(), "consumer_timeout") })
				require.Error(t, slow.Settler.Ack(), "it comes again")
				publishKeyed(t, transport, topic, "a/2")
				handled := make(map[string]bool)
				for !handled["a/1"] || !handled["a/2"] {
					d := next(t, feed)
					ack(t, d)
					handled[bus.MessageID(d.Message)] = true
				}
				closeAll(t, transport)
			})
		})
	}
}

// safeBuffer is a buffer for many goroutines.
type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}
