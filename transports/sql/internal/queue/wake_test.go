package queue

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestWaker_notifiesOtherProcesses checks that a publisher notifies other processes if any of them consumes.
func TestWaker_notifiesOtherProcesses(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	db, cfg, _ := pgxSchema(t)
	start := func() *Transport {
		transport, err := Open(ctx, db, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, transport.Close(context.Background())) })
		return transport
	}
	subscribe := func(transport *Transport) driver.Receiver {
		receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
		require.NoError(t, err)
		return receiver
	}
	here, elsewhere := start(), start()
	others := func() bool {
		yes, err := here.core.waker.others(ctx)
		require.NoError(t, err)
		return yes
	}
	require.False(t, others())
	subscribe(here)
	require.False(t, others())
	receiver := subscribe(elsewhere)
	require.True(t, others())

	conn, err := pgx.ConnectConfig(ctx, db.Pool.Config().ConnConfig)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	_, err = conn.Exec(ctx, "LISTEN "+here.core.waker.channel)
	require.NoError(t, err)
	require.NoError(t, here.Publish(ctx, "order.paid.v1", message.NewMessage("m", nil)))
	payload := ""
	for payload == "" || strings.HasSuffix(payload, pingTopic) { // a process's notification to itself
		n, err := conn.WaitForNotification(ctx)
		require.NoError(t, err)
		payload = n.Payload
	}
	require.Equal(t, []string{here.core.waker.id, "order.paid.v1"}, strings.Split(payload, "\n"))

	require.NoError(t, receiver.Close(ctx))
	require.False(t, others())
}

// TestNewRows_findTheVeryFirst checks that the first message of new tables counts as new: PostgreSQL's sequence has the value 1 before it
// as well.
func TestNewRows_findTheVeryFirst(t *testing.T) {
	t.Parallel()
	s, _ := pgxStore(t)
	_, f := keyedFeed(t, s, driver.OrderedByKey)
	newest, err := newestID(t.Context(), s)
	require.NoError(t, err)
	require.Zero(t, newest)
	var r newRows
	_, all, err := r.read(t.Context(), s)
	require.NoError(t, err)
	require.True(t, all, "the first read")
	require.Equal(t, int64(1), insertKeyed(t, s.Pool, s, f.group, 7))
	groups, all, err := r.read(t.Context(), s)
	require.NoError(t, err)
	require.False(t, all)
	require.Equal(t, []int64{f.group.id}, groups)
}
