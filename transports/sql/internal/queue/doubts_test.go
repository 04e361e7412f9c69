package queue

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestDoubts_aClaimIsCommittedAfterTheLook: a connection is lost during a claim's commit, which the server carries out after the
// receiver has looked for the messages that it owns.
func TestDoubts_aClaimIsCommittedAfterTheLook(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		subscribed, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
		require.NoError(t, err)
		receiver := subscribed.(*receiver)
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", keyedMessage("late")))

		f := newFetcher(receiver) // that of the receiver claims nothing, because nobody calls Next
		f.sure = false
		require.NoError(t, f.settleDoubts(ctx))
		require.True(t, f.sure)
		taken, err := receiver.core.claims.ready(ctx, claim{group: receiver.group, owner: receiver.consumer.id, limit: 1, bytes: 1 << 20})
		require.NoError(t, err)
		require.Len(t, taken, 1)

		f.empty, f.seen, f.nextPoll = true, f.hints.Load(), time.Now().Add(time.Hour)
		require.False(t, f.worthwhile())
		require.LessOrEqual(t, time.Until(f.doubts.again), firstDoubt)
		f.doubts.again = time.Now()
		require.True(t, f.worthwhile(), "it is time to look again")
		require.NoError(t, f.settleDoubts(ctx))
		require.True(t, f.doubts.again.After(time.Now()))

		patient, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		d, err := receiver.Next(patient)
		require.NoError(t, err)
		require.Equal(t, "late", d.Message.UUID)
		require.Equal(t, 1, d.Attempt)
		require.NoError(t, d.Settler.Ack())
		require.NoError(t, receiver.Close(ctx))
	})
}

func TestDoubts_looksBecomeRareAndNeverEnd(t *testing.T) {
	now := time.Now()
	var d doubts
	require.False(t, d.due(now.Add(time.Hour)), "no answer was lost")
	d.settled(now, false)
	for range 100 {
		require.False(t, d.due(now))
		now = d.again
		require.True(t, d.due(now))
		d.settled(now, true)
	}
	require.Equal(t, longestDoubt, d.again.Sub(now))
	d.settled(now, false)
	require.Equal(t, firstDoubt, d.again.Sub(now))
}
