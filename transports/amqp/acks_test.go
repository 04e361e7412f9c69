//go:build unix

package amqp_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// Acks do not wait for an older message that is still being handled: the others go on, and are not
// delivered again when the process ends without a word.
func TestAMessageThatTakesLongHoldsUpNoAcks(t *testing.T) {
	b := ownBroker(t)
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

// unsettled is how many messages a queue has that were delivered and not acked.
func unsettled(t *testing.T, b *broker, queue string) int {
	t.Helper()
	for line := range strings.Lines(b.ctl(t, "list_queues", "--no-table-headers", "name", "messages_unacknowledged")) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == queue {
			n, err := strconv.Atoi(fields[1])
			require.NoError(t, err)
			return n
		}
	}
	t.Fatalf("queue %s is not there", queue)
	return 0
}
