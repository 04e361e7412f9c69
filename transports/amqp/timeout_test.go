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
func TestAHandlerThatOutlastsTheConsumerTimeout(t *testing.T) {
	b := ownBroker(t)
	setting := func(name, value string) {
		b.ctl(t, "eval", "application:set_env(rabbit, "+name+", "+value+").")
	}
	setting("consumer_timeout", "3000")
	setting("channel_tick_interval", "300")
	defer setting("consumer_timeout", "1800000")
	defer setting("channel_tick_interval", "60000")
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			bothQueues(t, withOptions(b.url(), "heartbeat=2s"), func(t *testing.T, raw string) {
				u, err := url.Parse(raw)
				require.NoError(t, err)
				cfg, err := amqp.ConfigFromURL(u)
				require.NoError(t, err)
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
					ack(t, slow)
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
					ack(t, d)
					handled[driver.MessageID(d.Message)] = true
				}
				closeAll(t, transport)
			})
		})
	}
}
