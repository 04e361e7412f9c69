package sql_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

func TestHealthFollowsTheDatabase(t *testing.T) {
	s := onPostgres(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	s.url = u.String()
	transport := s.start(t)
	health := func() driver.TransportHealth { return transport.(driver.HealthChecker).Health() }
	require.Equal(t, driver.TransportHealth{Transport: "postgres", Connected: true}, health())

	_, err = transport.Subscribe(t.Context(), subscription("shop.ledger", 1, "order.paid.v1")) // it asks now and then
	require.NoError(t, err)
	require.ErrorIs(t, transport.Publish(t.Context(), "nobody.v1", message.NewMessage("m", nil)), driver.ErrUnroutable)
	require.EqualValues(t, 1, health().Unroutable)

	proxy.Refuse()
	proxy.CutAll()
	published := make(chan error, 1)
	go func() { published <- transport.Publish(t.Context(), "order.paid.v1", message.NewMessage("m", nil)) }()
	require.Eventually(t, func() bool { return !health().Connected }, patience, time.Millisecond, "the loss is noticed")
	require.Error(t, health().Err)
	proxy.Accept()
	require.NoError(t, <-published)
	var back driver.TransportHealth // once: another idle connection may turn out to be lost
	require.Eventually(t, func() bool { back = health(); return back.Connected }, patience, time.Millisecond, "the return is noticed")
	require.GreaterOrEqual(t, back.Reconnects, 1)
	require.NoError(t, back.Err)
}
