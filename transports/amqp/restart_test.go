//go:build unix

package amqp_test

import (
	"testing"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/transporttest"
)

// TestConformanceQuorum runs the suite with a broker that is killed at the first restart and stopped
// at the next; on the shared broker, without restarts, where there is no program to start one's own.
func TestConformanceQuorum(t *testing.T) {
	if testing.Short() {
		transporttest.Run(t, harness(testenv.ManagedRabbitMQ(t), ""))
		return
	}
	b := ownBroker(t)
	h := harness(b.url(), "management="+b.management())
	ends := []func(*broker, testing.TB){(*broker).kill, (*broker).stop}
	h.Restart = func(t testing.TB) {
		ends[0](b, t)
		ends[0], ends[1] = ends[1], ends[0]
		b.start(t)
	}
	transporttest.Run(t, h)
}
