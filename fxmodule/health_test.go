package fxmodule_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware/prommetrics"
)

func TestHealthHandler_onRabbitMQ(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, fmt.Sprintf("%s:%d", u.Host, u.Port))
	service := fmt.Sprintf("t%08x", rand.Uint32())
	defer testenv.Forget(t, broker, service+".x")

	registry := prometheus.NewRegistry()
	var b *bus.Bus
	app := fxtest.New(t, quiet(), fxmodule.Module,
		fx.Decorate(func(c fxmodule.Config) fxmodule.Config {
			c.URL, c.Service = "amqp://"+u.Username+":"+u.Password+"@"+proxy.Addr()+"/", service
			return c
		}),
		fx.Supply(fx.Annotate(registry, fx.As(new(prometheus.Registerer)))),
		fx.Invoke(prommetrics.Health),
		fxmodule.Handle("x", func(context.Context, orderPlaced) error { return nil }),
		fx.Populate(&b))
	app.RequireStart()
	require.Equal(t, []bus.Health{{Group: service + ".x", State: bus.Running}}, b.Health())
	require.True(t, shows(registry, "1"))

	proxy.Refuse()
	proxy.CutAll()
	eventually(t, func() bool { return b.Health()[0].State == bus.Degraded && b.Health()[0].Degraded["transport"] != "" })
	eventually(t, func() bool { return shows(registry, "0") })
	proxy.Accept()
	eventually(t, func() bool { return b.Health()[0].State == bus.Running && shows(registry, "1") })
	app.RequireStop()
}

// shows reports whether the metric of the connection has a value.
func shows(registry *prometheus.Registry, value string) bool {
	const name = "leat_transport_connected"
	const text = "# HELP leat_transport_connected 1 while the message system can be reached.\n# TYPE leat_transport_connected gauge\n"
	return testutil.GatherAndCompare(registry, strings.NewReader(text+name+`{transport="amqp"} `+value+"\n"), name) == nil
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, 5*time.Millisecond)
}
