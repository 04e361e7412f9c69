//go:build unix

package amqp_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// Acks do not wait for an older message that is still being handled: the others go on, and are not
// delivered again when the process ends without a word.
func TestAcks_goOnPastAMessageThatTakesLong(t *testing.T) {
	b := calmBroker(t)
	transport := open(t, withOptions(b.url(), "prefetch=20"))
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 2})
	const n = 200 // many times what is fetched ahead
	for i := range n {
		publish(t, transport, topic, itoa(i))
	}
	slow := next(t, feed)
	for range n - 1 {
		ack(t, next(t, feed))
	}
	eventually(t, "all others are acked", func() bool { return unsettled(t, b, group) == 1 })
	ack(t, slow)
	closeAll(t, transport)
	require.Zero(t, depth(t, b.url(), group))
}

// unsettled returns how many messages a queue has that were delivered and not acked.
func unsettled(t *testing.T, b *broker, queue string) int {
	t.Helper()
	n, err := strconv.Atoi(b.eval(t, fmt.Sprintf(
		`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), [{_, N}] = rabbit_amqqueue:info(Q, [messages_unacknowledged]), N.`, queue)))
	require.NoError(t, err)
	return n
}
