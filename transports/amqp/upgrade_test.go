package amqp_test

import (
	"context"
	"maps"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// What the version before held in an ordered group, delayed or parked, is handed out in its order, after the last process of
// that version has given up the lead.
func TestUpgrade_orderedGroupKeepsWhatWasHeld(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		t.Cleanup(func() { cleanUp(t, raw, []string{group + ".held", group + ".lead"}) })
		transport := open(t, raw)
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey, Park: true}
		feed := subscribe(t, transport, sub)
		publishKeyed(t, transport, topic, "a/3", "b/3", "c/2", "d/3", "e/1")
		due := time.Now().Add(3 * time.Second)
		withBroker(t, raw, func(ch *rabbit.Channel) {
			args := rabbit.Table{"x-queue-type": "classic"}
			lead := rabbit.Table{"x-queue-type": "classic", "x-single-active-consumer": true}
			_, err := ch.QueueDeclare(group+".held", true, false, false, false, args)
			require.NoError(t, err)
			_, err = ch.QueueDeclare(group+".lead", true, false, false, false, lead)
			require.NoError(t, err)
			require.NoError(t, ch.Confirm(false))
			send := func(queue, id, key string, at, rev int, more rabbit.Table) {
				h := rabbit.Table{"leat-held-key": key, "leat-held-place": int64(at), "leat-held-rev": int64(rev), "leat-topic": topic}
				if id != "" {
					h["leat-attempt"] = int32(1)
					h[driver.HeaderPartitionKey] = key
				}
				maps.Copy(h, more)
				confirm, err := ch.PublishWithDeferredConfirm("", queue, false, false, rabbit.Publishing{
					DeliveryMode: rabbit.Persistent, MessageId: id, Headers: h, Body: []byte("{}"),
				})
				require.NoError(t, err)
				require.True(t, confirm.Wait())
			}
			send(group+".poison", "a/1", "a", 10, 0, rabbit.Table{"leat-poison-id": "0001", "leat-queue": group})
			send(group+".held", "", "a", 10, 0, rabbit.Table{"leat-held-note": "parked"})
			send(group+".held", "a/2", "a", 11, 0, nil)
			send(group+".held", "b/2", "b", 21, 0, nil)
			send(group+".held", "b/1", "b", 20, 1, rabbit.Table{"leat-held-until": due.UnixMicro()})
			send(group+".held", "c/1", "c", 30, 0, nil)
			send(group+".held", "c/1", "c", 30, 1, nil) // written anew before the crash
			send(group+".held", "", "d", 40, 0, rabbit.Table{"leat-held-note": "parked"})
			send(group+".held", "d/2", "d", 41, 0, nil)
			send(group+".held", "", "d", 40, 0, rabbit.Table{"leat-held-note": "skip"}) // it was dropped
			send(group+".lead", "token", "", 0, 0, nil)
			token, err := ch.Consume(group+".lead", "", false, false, false, false, nil)
			require.NoError(t, err)
			<-token
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = feed.Next(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded, "the version before leads")
		})
		want := map[string][]string{"b": {"b/1", "b/2", "b/3"}, "c": {"c/1", "c/2"}, "d": {"d/2", "d/3"}, "e": {"e/1"}}
		for range 8 {
			d := next(t, feed)
			id := driver.MessageID(d.Message)
			require.NotEmpty(t, want[id[:1]], "%s came", id)
			require.Equal(t, want[id[:1]][0], id)
			want[id[:1]] = want[id[:1]][1:]
			require.Equal(t, topic, d.Topic)
			if id == "b/1" {
				require.False(t, time.Now().Before(due), "its time was forgotten")
				require.Equal(t, 2, d.Attempt)
			}
			ack(t, d)
		}
		queue := transport.PoisonQueue(group)
		n, err := queue.Replay(t.Context(), "0001")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		for _, id := range []string{"a/1", "a/2", "a/3"} {
			require.Equal(t, id, take(t, feed))
		}
		withBroker(t, raw, func(ch *rabbit.Channel) {
			eventually(t, "nothing is held any more", func() bool {
				q, err := ch.QueueDeclarePassive(group+".held", true, false, false, false, nil)
				require.NoError(t, err)
				return q.Messages == 0
			})
		})
		said := findingOf(t, transport.Diagnose(t.Context()), "group "+group)
		require.NoError(t, said.Err)
		require.Contains(t, said.Text, "queues "+group+".held and "+group+".lead are of an earlier version")
		closeAll(t, transport)
	})
}
