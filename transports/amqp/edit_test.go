package amqp_test

import (
	"fmt"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestEdit_aKilledOneLeavesOneMessage plays what is in the queue after a process was killed that had
// published the changed message and not taken the old one away.
func TestEdit_aKilledOneLeavesOneMessage(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	msgs := poisonedMessages(group, topic, 3, []byte("old"))
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	before, err := poison.List(t.Context(), "", 10)
	require.NoError(t, err)

	for edit := range int64(2) { // the second is of what the first has left
		withBroker(t, broker, func(ch *rabbit.Channel) {
			require.NoError(t, ch.Confirm(false))
			var original rabbit.Delivery
			eventually(t, "the message is there", func() bool { // the end of a list puts back what it has read
				d, there, err := ch.Get(group+".poison", false)
				require.NoError(t, err)
				if there {
					original = d
				}
				return original.Headers["leat-poison-id"] == before[1].ID && (original.Headers["leat-poison-rev"] == nil || edit > 0)
			})
			headers := original.Headers
			headers["leat-poison-rev"] = edit + 1
			confirmed, err := ch.PublishWithDeferredConfirm("", group+".poison", true, false, rabbit.Publishing{
				DeliveryMode: rabbit.Persistent, Headers: headers, MessageId: original.MessageId, Body: fmt.Appendf(nil, "new %d", edit),
			})
			require.NoError(t, err)
			require.True(t, confirmed.Wait())
		}) // the channel's end gives back what it got
		eventually(t, "both are there", func() bool { return depth(t, broker, group+".poison") == 4 })

		after, err := poison.List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, after, 3)
		for i, want := range []string{"old", fmt.Sprintf("new %d", edit), "old"} {
			require.Equal(t, before[i].ID, after[i].ID)
			require.Equal(t, want, string(after[i].Message.Payload))
		}
		eventually(t, "one of them is gone", func() bool { return depth(t, broker, group+".poison") == 3 })
	}

	n, err := poison.Replay(t.Context(), before[1].ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	d, err := feed.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, "new 1", string(d.Message.Payload))
	require.NotContains(t, fmt.Sprint(d.Message.Metadata), "rev")
	ack(t, d)
	closeAll(t, transport)
}

// Several messages that the broker has dead-lettered may have the same content. A change of one of them is no later revision of the
// others, which have its digest as their id.
func TestEdit_ofOneOfSeveralWithTheSameContent(t *testing.T) {
	eachQueue(t, sharedBroker(t), func(t *testing.T, raw string) {
		transport := open(t, raw)
		group, topic := unique("ledger"), unique("order.paid.v1")
		subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
		putRaw(t, raw, group, rabbit.Publishing{Body: []byte("{}")}, rabbit.Publishing{Body: []byte("{}")}, rabbit.Publishing{Body: []byte("{}")})
		poison := transport.PoisonQueue(group)
		before, err := poison.List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, before, 3)
		changed := before[0]
		changed.Message.Payload = []byte("new")
		driver.Fault{Topic: topic, Group: group}.Set(changed.Message.Metadata)
		require.NoError(t, poison.Put(t.Context(), changed))
		for range 2 {
			require.ElementsMatch(t, []string{"{}", "{}", "new"}, walkBodies(t, poison))
			after, err := poison.List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, after, 3)
		}
		closeAll(t, transport)
	})
}

// A replay may find the old revision of a message whose change was killed. It leaves the new one in the queue.
func TestEdit_aKilledOneSurvivesAReplay(t *testing.T) {
	eachQueue(t, sharedBroker(t), func(t *testing.T, raw string) {
		transport := open(t, raw)
		group, topic := unique("ledger"), unique("order.paid.v1")
		subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
		revision := func(id string, n int64, body string) rabbit.Publishing {
			return rabbit.Publishing{Headers: rabbit.Table{"leat-poison-id": id, "leat-poison-rev": n, "leat-topic": topic}, Body: []byte(body)}
		}
		putRaw(t, raw, group, revision("a", 0, "old"), revision("a", 1, "new"))
		poison := transport.PoisonQueue(group)
		ctx := driver.WithProgress(t.Context(), func(int) { // another message is poisoned meanwhile
			putRaw(t, raw, group, revision("b", 0, "other"))
		})
		n, err := poison.Replay(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.ElementsMatch(t, []string{"new", "other"}, walkBodies(t, poison))
		closeAll(t, transport)
	})
}

// putRaw publishes messages to the poison queue of a group.
func putRaw(t *testing.T, raw, group string, all ...rabbit.Publishing) {
	t.Helper()
	withBroker(t, raw, func(ch *rabbit.Channel) {
		for _, p := range all {
			p.DeliveryMode = rabbit.Persistent
			require.NoError(t, ch.PublishWithContext(t.Context(), "", group+".poison", true, false, p))
		}
	})
}

// walkBodies returns the bodies of the messages that a walk shows.
func walkBodies(t *testing.T, poison driver.PoisonQueue) (bodies []string) {
	t.Helper()
	require.NoError(t, poison.(driver.PoisonWalker).Walk(t.Context(), func(p driver.PoisonedMessage) error {
		bodies = append(bodies, string(p.Message.Payload))
		return nil
	}))
	return bodies
}
