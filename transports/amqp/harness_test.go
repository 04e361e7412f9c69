package amqp_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
	"github.com/leatbus/leat/transports/transporttest"
)

// patience is how long a test waits for what must happen. It is generous: the machine may be busy with
// other things.
const patience = 2 * time.Minute

func TestConformance_classic(t *testing.T) { testConformance(t, "queue=classic") }
func TestConformance_quorum(t *testing.T)  { testConformance(t, "queue=quorum") }

// testConformance runs the suite on the broker that tests share. TestConformance_restart has one that it may restart.
func testConformance(t *testing.T, options string) {
	h := harness(testenv.ManagedRabbitMQ(t), options)
	h.Begin = func(t *testing.T) { await(t, turns.shared) }
	transporttest.Run(t, h)
}

func harness(broker, options string) transporttest.Harness {
	broker = withOptions(broker, options)
	return transporttest.Harness{
		Open:    func(t testing.TB) driver.Transport { return open(t, broker) },
		URL:     broker,
		OpenURL: openURL,
	}
}

func openURL(ctx context.Context, raw string) (driver.Transport, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	return amqp.Open(ctx, u)
}

// open makes a transport that logs to the test, and deletes the queues of its groups at the end.
func open(t testing.TB, raw string, changes ...func(*amqp.Config)) *amqp.Transport {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	cfg, err := amqp.ConfigFromURL(u)
	require.NoError(t, err)
	cfg.Logger = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	bePatient(&cfg)
	for _, change := range changes {
		change(&cfg)
	}
	transport, err := amqp.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { cleanUp(t, raw, transport.QueuesForTest()) })
	return transport
}

// bePatient sets the timeouts that a URL does not name, so that no pause of the machine ends a connection.
func bePatient(cfg *amqp.Config) {
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, patience)
	cfg.DialTimeout, cfg.ConnectTimeout = cmp.Or(cfg.DialTimeout, patience), cmp.Or(cfg.ConnectTimeout, patience)
}

// patiently returns a URL for another process, with the timeouts of bePatient.
func patiently(raw string) string {
	options := []string{"dial_timeout=" + patience.String(), "connect_timeout=" + patience.String()}
	if !strings.Contains(raw, "heartbeat=") {
		options = append(options, "heartbeat="+patience.String())
	}
	return withOptions(raw, strings.Join(options, "&"))
}

func cleanUp(t testing.TB, raw string, queues []string) {
	conn, err := rabbit.Dial(bare(raw))
	if err != nil {
		t.Logf("clean up: %v", err)
		return
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(t, err)
	for _, queue := range queues {
		_, _ = ch.QueueDelete(queue, false, false, false)
	}
}

// bare returns the URL without leat's options.
func bare(raw string) string {
	address, _, _ := strings.Cut(raw, "?")
	return address
}

func withOptions(raw, options string) string {
	if options == "" {
		return raw
	}
	if strings.Contains(raw, "?") {
		return raw + "&" + options
	}
	return raw + "?" + options
}

func unique(name string) string { return fmt.Sprintf("t%08x.%s", rand.Uint32(), name) }
