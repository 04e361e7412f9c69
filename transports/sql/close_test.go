package sql_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// TestClose_keepsWithinItsContext also while the network swallows everything.
func TestClose_keepsWithinItsContext(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) {
			s := on(t)
			u, err := url.Parse(s.url)
			require.NoError(t, err)
			proxy := testenv.NewProxy(t, u.Host)
			u.Host = proxy.Addr()
			s.url = u.String()
			transport := s.open(t)
			feed, err := transport.Subscribe(testContext(t), subscription("shop.ledger", 1, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, transport.Publish(testContext(t), "order.paid.v1", newMessage("order.paid.v1", "m")))
			next(t, feed, patience)
			proxy.Stall()
			ctx, cancel := context.WithTimeout(testContext(t), time.Second)
			defer cancel()
			began := time.Now()
			require.Error(t, transport.Close(ctx), "what it held comes again when its lease has run out")
			require.Less(t, time.Since(began), 10*time.Second, "pgx alone takes 15 s")
			proxy.Resume()
		})
	}
}
