//go:build unix

package amqp_test

import (
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// A handler that takes longer than the broker waits for an ack: the group goes on, nothing is lost, and the
// log names the cure.
func TestConsumerTimeout_ofAHandler(t *testing.T) {
	b := ownBroker(t)
	t.Cleanup(b.setting(t, "consumer_timeout", "3000"))
	t.Cleanup(b.setting(t, "channel_tick_interval", "300"))
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			bothQueues(t, b.url(), func(t *testing.T, raw string) {
				u, err := url.Parse(raw)
				require.NoError(t, err)
				if u.Query().Get("queue") == "classic" && b.atLeast(t, 4, 3) {
					t.Skip("since RabbitMQ 4.3 only quorum queues have a consumer timeout")
				}
				cfg, err := amqp.ConfigFromURL(u)
				require.NoError(t, err)
				bePatient(&cfg)
				log := new(testenv.Buffer)
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
				transport, err := amqp.New(t.Context(), cfg)
				require.NoError(t, err)
				t.Cleanup(func() { cleanUp(t, raw, transport.QueuesForTest()) })
				topic := unique("order.paid.v1")
				feed := subscribe(t, transport, driver.Subscription{
					Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4, Order: order,
				})
				publishKeyed(t, transport, topic, "a/1", "b/1")
				slow := next(t, feed)
				for driver.MessageID(slow.Message) != "a/1" {
					_ = slow.Settler.Ack() // a late one is redelivered
					slow = next(t, feed)
				}
				log.Reset() // what is logged from now on ends the message's session, or a later one
				eventually(t, "the log says what happened", func() bool {
					return strings.Contains(log.String(), "consuming is interrupted") && strings.Contains(log.String(), "consumer_timeout")
				})
				require.Error(t, slow.Settler.Ack(), "the broker has it again")
				publishKeyed(t, transport, topic, "a/2")
				// A process of an ordered group knows what it has handled, and acks that when it is redelivered.
				handled := map[string]bool{"a/1": order != driver.Unordered}
				for !handled["a/1"] || !handled["a/2"] {
					d := next(t, feed)
					if err := d.Settler.Ack(); err == nil || order != driver.Unordered {
						handled[driver.MessageID(d.Message)] = true
					} // else this took too long, too
				}
				closeAll(t, transport)
			})
		})
	}
}
