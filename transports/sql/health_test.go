package sql_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

func TestHealth_followsTheDatabase(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	proxy := s.ThroughProxy(t)
	transport := s.Start(t)
	health := func() driver.TransportHealth { return transport.(driver.HealthChecker).Health() }
	require.Equal(t, driver.TransportHealth{Transport: "postgres", Connected: true}, health())

	_, err := transport.Subscribe(t.Context(), sqltest.Subscription("shop.ledger", 1, "order.paid.v1")) // so that it polls
	require.NoError(t, err)
	require.ErrorIs(t, transport.Publish(t.Context(), "nobody.v1", message.NewMessage("m", nil)), driver.ErrUnroutable)
	require.EqualValues(t, 1, health().Unroutable)

	proxy.Refuse()
	proxy.CutAll()
	published := make(chan error, 1)
	go func() { published <- transport.Publish(t.Context(), "order.paid.v1", message.NewMessage("m", nil)) }()
	require.Eventually(t, func() bool { return !health().Connected }, sqltest.Patience, time.Millisecond, "the loss is noticed")
	require.Error(t, health().Err)
	proxy.Accept()
	require.NoError(t, <-published)
	var back driver.TransportHealth // read once, since another idle connection may be lost
	require.Eventually(t, func() bool { back = health(); return back.Connected }, sqltest.Patience, time.Millisecond, "the return is noticed")
	require.GreaterOrEqual(t, back.Reconnects, 1)
	require.NoError(t, back.Err)
}
