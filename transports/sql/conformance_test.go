package sql_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/transporttest"
)

// TestConformance runs the contract with the documented rights. Every second instance uses a pool of the user; the others
// have their own.
func TestConformance(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		owner := s
		s, overPool := s.withDocumentedRights(t)
		instances := 0
		transporttest.Run(t, transporttest.Harness{
			Open: func(t testing.TB) driver.Transport {
				if instances++; overPool != nil && instances%2 == 0 {
					return overPool(t)
				}
				return s.Open(t)
			},
			Operator: func(t testing.TB) driver.Transport { return owner.Open(t) },
			URL:      s.URL,
			OpenURL:  sqltest.OpenURL,

			Patience: sqltest.Patience,
		})
	})
}

// TestWatermillSuite runs Watermill's universal Pub/Sub tests over the transport.
func TestWatermillSuite(t *testing.T) {
	testenv.PatientWatermill()
	eachSystem(t, func(t *testing.T, s system) {
		// The suite opens a hundred instances at once; here they are a few processes with many
		// subscribers each.
		var transports [3]driver.Transport
		for i := range transports {
			transports[i] = s.Start(t)
		}
		var n atomic.Int32
		open := func(_ *testing.T, group string) (message.Publisher, message.Subscriber) {
			transport := transports[int(n.Add(1))%len(transports)]
			return bus.NewPublisher(transport), bus.NewSubscriber(transport, group, bus.NackPause(time.Millisecond))
		}
		t.Run("suite", func(t *testing.T) { // returns when its parallel tests have ended
			tests.TestPubSub(t, tests.Features{
				ConsumerGroups:                      true,
				GuaranteedOrder:                     false, // with competing consumers
				GuaranteedOrderWithSingleSubscriber: true,
				Persistent:                          true,
				ForceShort:                          s.Config.Dialect == sql.SQLite, // a larger size tests nothing more in one process
			}, func(t *testing.T) (message.Publisher, message.Subscriber) { return open(t, "test") }, open)
		})
	})
}
