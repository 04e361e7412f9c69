//go:build unix

package amqp_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// suspendLeader keeps the leader of a quorum queue from answering, for the time d.
func (b *broker) suspendLeader(t testing.TB, queue string, d time.Duration) {
	t.Helper()
	b.eval(t, fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), {Name, _} = amqqueue:get_pid(Q), `+
		`Pid = whereis(Name), sys:suspend(Pid), spawn(fun() -> timer:sleep(%d), sys:resume(Pid) end), ok.`, queue, d.Milliseconds()))
}

// RabbitMQ answers that a quorum queue is empty when its leader takes longer than 250 ms.
func TestPoisonQueue_isNotEmptyWhileItsLeaderIsSlow(t *testing.T) {
	b := calmBroker(t)
	transport := open(t, b.url())
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "bad")
	poison(t, next(t, feed))
	queue := transport.PoisonQueue(group)
	const slow = 2 * time.Second

	b.suspendLeader(t, group+".poison", slow)
	n, err := queue.Len(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)

	b.suspendLeader(t, group+".poison", slow)
	require.Equal(t, 1, groupOf(t, transport, group).Poisoned)

	b.suspendLeader(t, group+".poison", slow)
	list, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
	closeAll(t, transport)
}
