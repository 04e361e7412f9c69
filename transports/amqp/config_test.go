package amqp_test

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

func TestConfigFromURL_namesMistakesWithTheirFix(t *testing.T) {
	for raw, want := range map[string]string{
		"amqp://localhost/?prefech=10":                                                `Did you mean "prefetch"?`,
		"amqp://localhost/?queue=quorrum":                                             "one of quorum, classic",
		"amqp://localhost/?heartbeat=10":                                              "a positive duration",
		"amqp://localhost/?cacert=ca.pem":                                             "nothing would be encrypted",
		"amqps://localhost/?cert=c.pem":                                               "give both files or none",
		"amqps://localhost/?auth=external":                                            "give cert and key",
		"amqp://localhost/?prefetch=70000":                                            "between 1 and 65535",
		"amqps://127.0.0.1:1/?cacert=/none.pem&dial_timeout=1s&connect_timeout=100ms": "127.0.0.1:1",
	} {
		_, err := openURL(t.Context(), raw)
		require.ErrorContains(t, err, want, raw)
	}
}

func TestOpen_errorOfAnUnreachableBrokerHasNoCredentials(t *testing.T) {
	const secret = "s3cr3t@/%#"
	const encoded = "s3cr3t%40%2F%25%23"
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	address := u.Host + ":" + itoa(u.Port)
	for raw, want := range map[string]string{
		"amqp://shop:" + encoded + "@127.0.0.1:1/?connect_timeout=200ms":                                "connect to 127.0.0.1:1",
		"amqp://shop:" + encoded + "@" + address + "/":                                                  "correct user and password",
		"amqps://shop:" + encoded + "@" + address + "/?connect_timeout=10s":                             "TLS",
		"amqp://guest:guest@" + address + "/no-such-host":                                               "no access to this virtual host",
		"amqp://shop:" + encoded + "@" + silentServer(t) + "/?dial_timeout=200ms&connect_timeout=300ms": "no answer in time",
	} {
		began := time.Now()
		_, err := openURL(t.Context(), raw)
		require.ErrorContains(t, err, want, raw)
		require.NotContains(t, err.Error(), secret)
		require.NotContains(t, err.Error(), encoded)
		require.Less(t, time.Since(began), patience, raw)
	}
}

func TestOpen_interruptedIsNoTimeout(t *testing.T) {
	ctx, interrupt := context.WithCancelCause(t.Context())
	server := silentServer(t)
	time.AfterFunc(50*time.Millisecond, func() { interrupt(errors.New("terminated")) })
	_, err := openURL(ctx, "amqp://"+server+"/")
	require.ErrorContains(t, err, "interrupted before it answered: terminated")
	require.NotContains(t, err.Error(), "in time")
}

func TestConflict_namesTheArgument(t *testing.T) {
	broker := sharedBroker(t)
	group, topic := unique("ledger"), unique("a.v1")
	first := open(t, broker)
	subscribe(t, first, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	second := open(t, withOptions(broker, "queue=classic"))
	_, err := second.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	var conflict *amqp.ConflictError
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, "x-queue-type", conflict.Argument)
	require.ErrorContains(t, err, group)
	require.ErrorContains(t, err, "option queue")

	third := open(t, broker)
	_, err = third.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1, Order: driver.OrderedByKey})
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, "x-single-active-consumer", conflict.Argument)
	require.ErrorContains(t, err, "leat groups rm")

	exchange := unique("direct")
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.ExchangeDeclare(exchange, "direct", true, false, false, false, nil))
	})
	defer deleteExchange(t, broker, exchange)
	_, err = openURL(t.Context(), withOptions(broker, "exchange="+exchange))
	require.ErrorContains(t, err, "choose another exchange")
	closeAll(t, first, second, third)
}

func TestDeclare_nothingIsOnlyChecked(t *testing.T) {
	broker := sharedBroker(t)
	closeAll(t, open(t, broker)) // somebody with the right has declared it
	transport := open(t, withOptions(broker, "declare=false"))
	group, topic := unique("ledger"), unique("order.paid.v1")
	_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	require.ErrorContains(t, err, "it does not exist and declare=false")

	declaring := open(t, broker)
	subscribe(t, declaring, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "a")
	require.Equal(t, "a", take(t, feed))
	_, err = openURL(t.Context(), withOptions(broker, "declare=false&exchange="+unique("missing")))
	require.ErrorContains(t, err, "it does not exist and declare=false")
	closeAll(t, transport, declaring)
}

func TestConfig_zeroWorks(t *testing.T) {
	broker := sharedBroker(t)
	if !strings.Contains(broker, "guest:guest@127.0.0.1:5672/") {
		t.Skip("the zero Config is a broker on this machine")
	}
	transport, err := amqp.New(t.Context(), amqp.Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.True(t, transport.Health().Connected)
	closeAll(t, transport)
	require.ErrorIs(t, transport.Publish(context.Background(), "a.v1", newMessage("a.v1", "m")), driver.ErrClosed)
}

func TestConfig_severalHosts(t *testing.T) {
	broker := sharedBroker(t)
	u, err := url.Parse(broker)
	require.NoError(t, err)
	const closed = "127.0.0.1:1"
	proxy := testenv.NewProxy(t, u.Host)
	log := new(testenv.Buffer)
	cfg, err := amqp.ConfigFromURL(&url.URL{Scheme: "amqp", User: u.User, Host: closed + "," + proxy.Addr() + "," + closed, Path: "/"})
	require.NoError(t, err)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	transport, err := amqp.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { cleanUp(t, broker, transport.QueuesForTest()) })
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	proxy.Refuse()
	proxy.CutAll()
	eventually(t, "the log says that it is not connected", func() bool {
		return strings.Contains(log.String(), "not connected") && strings.Contains(log.String(), closed)
	})
	proxy.Accept()
	publish(t, transport, topic, "a")
	require.Equal(t, "a", take(t, feed))
	closeAll(t, transport)
}

func TestConfig_mistakesInHeartbeatAndUser(t *testing.T) {
	for raw, want := range map[string]string{
		"amqp://localhost/?heartbeat=500ms": "heartbeat is 500ms",
		"amqp://localhost/?heartbeat=19h":   "heartbeat is 19h",
		"amqp://bob@localhost/":             `user "bob" has no password`,
		"amqp://bob:@localhost/":            `user "bob" has no password`,
	} {
		_, err := openURL(t.Context(), raw)
		require.ErrorContains(t, err, want)
	}
}
