package amqp_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware/prommetrics"
)

func TestHealth_isShownByTheBusAndItsMetrics(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host+":"+itoa(u.Port))
	transport := open(t, "amqp://"+u.Username+":"+u.Password+"@"+proxy.Addr()+"/")
	b, err := bus.New(transport, bus.Config{Service: unique("shop")})
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	require.NoError(t, prommetrics.Health(registry, b))
	const connected = "# HELP leat_transport_connected 1 while the message system can be reached.\n# TYPE leat_transport_connected gauge\n" +
		"leat_transport_connected{transport=\"amqp\"} "
	is := func(value string) bool {
		return testutil.GatherAndCompare(registry, strings.NewReader(connected+value+"\n"), "leat_transport_connected") == nil
	}
	require.True(t, is("1"))
	proxy.Refuse()
	proxy.CutAll()
	eventually(t, "the loss shows", func() bool { return is("0") })
	h, ok := b.TransportHealth()
	require.True(t, ok)
	require.Error(t, h.Err)
	proxy.Accept()
	eventually(t, "both connections return", func() bool { return is("1") && reconnects(b) >= 2 })
	n, err := testutil.GatherAndCount(registry, "leat_transport_reconnects_total", "leat_transport_blocked", "leat_transport_unroutable_total")
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.NoError(t, b.Close(t.Context()))
}

func reconnects(b *bus.Bus) int {
	h, _ := b.TransportHealth()
	return h.Reconnects
}
