package memory_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/transporttest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestConformance(t *testing.T) {
	transporttest.Run(t, transporttest.Harness{
		Open: func(testing.TB) driver.Transport { return memory.New(memory.Config{Bytes: 512 * 1800}) },
		URL:  "memory://",
		OpenURL: func(ctx context.Context, rawURL string) (driver.Transport, error) {
			u, err := url.Parse(rawURL)
			if err != nil {
				return nil, err
			}
			return memory.Open(ctx, u)
		},
		Bound: 512,
	})
}

// TestWatermillSuite runs Watermill's universal Pub/Sub tests over the transport. One transport is the
// message system; each publisher and subscriber is a view of it.
func TestWatermillSuite(t *testing.T) {
	testenv.PatientWatermill()
	transport := memory.New(memory.Config{})
	defer func() { require.NoError(t, transport.Close(context.Background())) }()
	open := func(group string) (message.Publisher, message.Subscriber) {
		return bus.NewPublisher(transport), bus.NewSubscriber(transport, group, bus.NackPause(time.Millisecond))
	}
	t.Run("suite", func(t *testing.T) {
		tests.TestPubSub(t, tests.Features{
			ConsumerGroups:                      true,
			GuaranteedOrder:                     true,
			GuaranteedOrderWithSingleSubscriber: true,
			Persistent:                          true,
		},
			func(*testing.T) (message.Publisher, message.Subscriber) { return open("test") },
			func(_ *testing.T, group string) (message.Publisher, message.Subscriber) { return open(group) })
	})
}
