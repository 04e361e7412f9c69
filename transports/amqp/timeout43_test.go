//go:build unix

package amqp_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// RabbitMQ 4.3 cancels the consumer of a message that is not acked in time: the group goes on, nothing is lost, and the
// log names the fix.
func TestConsumerTimeout_cancelsTheConsumer(t *testing.T) {
	b := calmBroker(t)
	if !b.atLeast(t, 4, 3) {
		t.Skip("RabbitMQ 4.3 and later do so")
	}
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			group, topic := unique("ledger"), unique("order.paid.v1")
			policy := "/api/policies/%2F/" + group
			pattern := "^" + regexp.QuoteMeta(group) + "$"
			definition, err := json.Marshal(map[string]any{"pattern": pattern, "apply-to": "queues", "definition": map[string]any{"consumer-timeout": 2000}})
			require.NoError(t, err)
			b.call(t, http.MethodPut, policy, string(definition))
			defer b.call(t, http.MethodDelete, policy, "")
			u, err := url.Parse(b.url())
			require.NoError(t, err)
			cfg, err := amqp.ConfigFromURL(u)
			require.NoError(t, err)
			log := new(testenv.Buffer)
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			transport, err := amqp.New(t.Context(), cfg)
			require.NoError(t, err)
			t.Cleanup(func() { cleanUp(t, b.url(), transport.QueuesForTest()) })
			feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: order})
			publishKeyed(t, transport, topic, "a/1", "b/1")
			slow := next(t, feed)
			for driver.MessageID(slow.Message) != "a/1" {
				_ = slow.Settler.Ack() // a late one is redelivered
				slow = next(t, feed)
			}
			eventually(t, "the log says what happened", func() bool {
				return strings.Contains(log.String(), "consuming is interrupted") && strings.Contains(log.String(), "consumer_timeout")
			})
			require.Error(t, slow.Settler.Ack(), "it comes again")
			publishKeyed(t, transport, topic, "a/2")
			// A process of an ordered group knows what it has handled, and acks that when it is redelivered.
			attempts := make(map[string]int)
			for attempts["a/2"] == 0 || order == driver.Unordered && attempts["a/1"] == 0 {
				d := next(t, feed)
				if d.Settler.Ack() == nil || order != driver.Unordered { // else this took too long, too
					attempts[driver.MessageID(d.Message)] = d.Attempt
				}
			}
			if order == driver.Unordered {
				require.GreaterOrEqual(t, attempts["a/1"], 2, "the attempt that took too long counts")
			}
			closeAll(t, transport)
		})
	}
}
