package otelmetrics_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware/otelmetrics"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type orderPaid struct{ ID string }

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }
func (e orderPaid) PartitionKey() string   { return e.ID }

// collected has the points of one collection.
type collected struct {
	values map[string]float64         // instrument{attributes} → its value; of a histogram, how often it was recorded
	keys   map[string]map[string]bool // instrument → its attributes
	units  map[string]string
}

func collect(t *testing.T, reader *metric.ManualReader) collected {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &all))
	c := collected{make(map[string]float64), make(map[string]map[string]bool), make(map[string]string)}
	for _, scope := range all.ScopeMetrics {
		require.Equal(t, "https://opentelemetry.io/schemas/1.43.0", scope.Scope.SchemaURL)
		for _, m := range scope.Metrics {
			require.NotEmpty(t, m.Description, m.Name)
			c.units[m.Name] = m.Unit
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				add(c, m.Name, data.DataPoints)
			case metricdata.Gauge[int64]:
				add(c, m.Name, data.DataPoints)
			case metricdata.Gauge[float64]:
				add(c, m.Name, data.DataPoints)
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					c.note(m.Name, p.Attributes, float64(p.Count))
				}
			default:
				require.Failf(t, "unknown data", "%s: %T", m.Name, m.Data)
			}
		}
	}
	return c
}

func add[N int64 | float64](c collected, name string, points []metricdata.DataPoint[N]) {
	for _, p := range points {
		c.note(name, p.Attributes, float64(p.Value))
	}
}

func (c collected) note(name string, set attribute.Set, value float64) {
	if c.keys[name] == nil {
		c.keys[name] = make(map[string]bool)
	}
	var text []string
	for _, kv := range set.ToSlice() {
		c.keys[name][string(kv.Key)] = true
		text = append(text, fmt.Sprintf("%s=%s", kv.Key, kv.Value.String()))
	}
	c.values[name+"{"+strings.Join(text, ",")+"}"] = value
}

// waiting is an outbox in which something waits.
type waiting struct{ driver.Outbox }

func (waiting) Stats(context.Context) (driver.OutboxStats, error) {
	return driver.OutboxStats{Pending: 7, OldestAge: 1500 * time.Millisecond}, nil
}
func (waiting) Group() string               { return "test.outbox" }
func (waiting) Problem() error              { return nil }
func (waiting) Close(context.Context) error { return nil }

// run publishes messages that end in each way, and returns what is measured then.
func run(t *testing.T) collected {
	t.Helper()
	reader := metric.NewManualReader()
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	observer, err := otelmetrics.New(provider, otelmetrics.WithSystem("rabbitmq"))
	require.NoError(t, err)
	h := bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
		handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
			switch e.ID {
			case "bad":
				return bus.Permanent(errors.New("bad"))
			case "late":
				return bus.Snooze(time.Hour)
			}
			return nil
		}, handlers.OrderedByKey()))
	require.NoError(t, otelmetrics.Watch(provider, h.Bus()))
	h.FailNext("ledger", errors.New("once"))
	for _, id := range []string{"good", "bad", "bad", "late"} {
		h.Publish(orderPaid{id})
	}
	require.ErrorIs(t, h.Bus().Transport().Publish(t.Context(), "nobody.v1", message.NewMessage("id", nil)), bus.ErrUnroutable)
	time.Sleep(10 * time.Second)
	return collect(t, reader)
}

func TestMetrics_countEveryOutcomeAndWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := run(t)
		const (
			of      = "messaging.consumer.group.name=test.ledger"
			sent    = "messaging.destination.name=order.paid.v1,messaging.operation.name=send"
			process = ",messaging.destination.name=order.paid.v1,messaging.operation.name=process,messaging.system=rabbitmq"
		)
		for point, want := range map[string]float64{
			"messaging.client.sent.messages{" + sent + ",messaging.system=rabbitmq}":                                    4,
			"messaging.client.operation.duration{" + sent + ",messaging.operation.type=send,messaging.system=rabbitmq}": 4,
			"messaging.client.consumed.messages{leat.outcome=handled," + of + process + "}":                             1,
			"messaging.client.consumed.messages{error.type=poisoned,leat.outcome=poisoned," + of + process + "}":        1,
			"messaging.client.consumed.messages{error.type=redelivered,leat.outcome=redelivered," + of + process + "}":  1,
			"messaging.process.duration{leat.outcome=handled," + of + process + "}":                                     1,
			"leat.delivery.lag{" + of + ",messaging.system=rabbitmq}":                                                   3,
			"leat.deliveries.in_flight{" + of + ",messaging.system=rabbitmq}":                                           0,
			"leat.group.messages{leat.state=waiting," + of + "}":                                                        0,
			"leat.group.messages{leat.state=delayed," + of + "}":                                                        1,
			"leat.group.messages{leat.state=parked," + of + "}":                                                         1,
			"leat.group.messages{leat.state=in_flight," + of + "}":                                                      0,
			"leat.group.messages{leat.state=poisoned," + of + "}":                                                       1,
			"leat.group.parked_keys{" + of + "}":                                                                        1,
			"leat.group.consumers{" + of + "}":                                                                          1,
			"leat.group.degraded{leat.part=parked," + of + "}":                                                          1,
			"leat.retries{" + of + "}":                                                                                  1,
			"leat.transport.connected{leat.transport=memory}":                                                           1,
			"leat.transport.blocked{leat.transport=memory}":                                                             0,
			"leat.transport.unroutable{leat.transport=memory}":                                                          1,
		} {
			require.Contains(t, c.values, point)
			require.InDelta(t, want, c.values[point], 0, point)
		}
		require.InDelta(t, 10, c.values["leat.group.oldest{"+of+"}"], 1)
		require.Equal(t, "s", c.units["messaging.process.duration"])
		require.Equal(t, "{message}", c.units["messaging.client.sent.messages"])
		require.NotContains(t, c.units, "leat.outbox.messages", "there is none")
	})
}

func TestObserver_countsWhatIsNotPublished(t *testing.T) {
	reader := metric.NewManualReader()
	observer, err := otelmetrics.New(metric.NewMeterProvider(metric.WithReader(reader)))
	require.NoError(t, err)
	for i := range 600 {
		observer.Published(t.Context(), bus.Publication{Topic: fmt.Sprint("foreign.", i), Messages: []*message.Message{nil}, Err: errors.New("no")})
	}
	c := collect(t, reader)
	of := func(topic string) float64 {
		return c.values["messaging.client.sent.messages{error.type=error,messaging.destination.name="+topic+",messaging.operation.name=send,messaging.system=leat}"]
	}
	require.InDelta(t, 1, of("foreign.499"), 0)
	require.InDelta(t, 100, of("other"), 0)
}

func TestWatch_observesTheOutbox(t *testing.T) {
	c := outboxOnly(t)
	require.InDelta(t, 7, c.values["leat.outbox.messages{}"], 0)
	require.InDelta(t, 1.5, c.values["leat.outbox.oldest{}"], 0)
}

func outboxOnly(t *testing.T) collected {
	t.Helper()
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "test", Outbox: waiting{}})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	reader := metric.NewManualReader()
	require.NoError(t, otelmetrics.Watch(metric.NewMeterProvider(metric.WithReader(reader)), b))
	return collect(t, reader)
}

// instrument is a row of the table of instruments in the documents: a name, its attributes and a text.
var instrument = regexp.MustCompile("(?m)^\\| `((?:leat|messaging)\\.[a-z_.]+)` \\| ([a-z_., ]*?) *\\| .+\\|$")

func TestMonitoringPages_listEveryInstrument(t *testing.T) {
	have := make(map[string]string)
	add := func(c collected) {
		for name, keys := range c.keys {
			have[name] = strings.Join(slices.Sorted(maps.Keys(keys)), ", ")
		}
	}
	add(outboxOnly(t))
	synctest.Test(t, func(t *testing.T) { add(run(t)) })
	require.Len(t, have, 20)
	for _, page := range []string{"docs/monitoring.md", "docs/zh-CN/monitoring.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", page))
		require.NoError(t, err)
		listed := make(map[string]string)
		for _, match := range instrument.FindAllStringSubmatch(string(text), -1) {
			attributes := strings.Split(match[2], ", ")
			slices.Sort(attributes)
			listed[match[1]] = strings.Join(slices.DeleteFunc(attributes, func(a string) bool { return a == "error.type" }), ", ")
		}
		for name, attributes := range have {
			have[name] = strings.ReplaceAll(attributes, "error.type, ", "") // only if something has failed
		}
		require.Equal(t, have, listed, page)
	}
}

// Who pushes metrics links neither Prometheus nor the SDK: that is the application's.
func TestServicesWithMetrics_linkNoSDK(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", "github.com/leatbus/leat/middleware/otelmetrics").Output()
	require.NoError(t, err)
	require.Contains(t, string(deps), "go.opentelemetry.io/otel/metric")
	require.NotContains(t, string(deps), "go.opentelemetry.io/otel/sdk")
	require.NotContains(t, string(deps), "prometheus")
}
