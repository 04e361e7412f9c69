package admin_test

import (
	"context"
	"log/slog"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql/outbox"
	_ "github.com/leatbus/leat/transports/sqlite"
)

// TestWithOutbox_addsAGroup uses a service in memory whose outbox has a poisoned message.
func TestWithOutbox_addsAGroup(t *testing.T) {
	tables := &url.URL{Scheme: "sqlite", Path: filepath.Join(t.TempDir(), "shop.db")}
	outbox, err := outbox.Open(t.Context(), tables, outbox.Config{Service: "shop"})
	require.NoError(t, err)
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Outbox: outbox, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	_, err = b.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.zebra", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	client := clientOf(t, admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s"), Bus: b})

	msg := message.NewMessage("e-1", []byte("{}"))
	msg.Metadata = message.Metadata{driver.HeaderID: "e-1", driver.HeaderType: "order.paid.v1"}
	driver.Fault{Text: "too large", Class: "*TooLarge", Group: outbox.Group(), Topic: "order.paid.v1"}.Set(msg.Metadata)
	require.NoError(t, outbox.PoisonQueue().Put(t.Context(), driver.PoisonedMessage{Message: msg}))

	groups, err := client.Groups(t.Context())
	require.NoError(t, err)
	require.Len(t, groups, 2)
	require.Equal(t, driver.GroupInfo{
		Name: "shop.outbox", Poisoned: 1, Delayed: driver.Unknown, Parked: driver.Unknown, InFlight: driver.Unknown, Consumers: driver.Unknown,
	}, groups[0])
	require.Equal(t, "shop.zebra", groups[1].Name)
	_, err = admin.FindGroups(t.Context(), client, "shop.outbx")
	require.ErrorContains(t, err, "Did you mean shop.outbox?")
	_, err = admin.FindGroups(t.Context(), client, "till.outbox")
	require.ErrorContains(t, err, "Did you mean shop.outbox?")

	queue := client.PoisonQueue("shop.outbox")
	dead, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, dead, 1)
	require.Equal(t, "too large", dead[0].Fault.Text)
	findings := client.Diagnose(t.Context())
	require.Contains(t, findings, driver.Finding{Check: "outbox shop.outbox", Text: "0 pending, ? relaying, 1 set aside"})

	n, err := queue.Replay(t.Context(), dead[0].ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	stats, err := b.OutboxStats(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, stats.Pending, "the relay has it again")
	_, err = admin.NewLocalDryRunner(b, middleware.Stack{}).DryRun(t.Context(), "shop.outbox", dead)
	require.ErrorContains(t, err, "an outbox has no handler")
}
