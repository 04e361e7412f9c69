//go:build unix

package amqp_test

import (
	"testing"

	"github.com/leatbus/leat/transports/transporttest"
)

// TestConformance_restart runs the promises that outlast a restart with a broker that is killed at the first restart and
// stopped at the next.
func TestConformance_restart(t *testing.T) {
	b := ownBroker(t)
	h := harness(b.url(), "")
	h.OnlyRestart = true
	ends := []func(*broker, testing.TB){(*broker).kill, (*broker).stop}
	h.Restart = func(t testing.TB) {
		ends[0](b, t)
		ends[0], ends[1] = ends[1], ends[0]
		b.start(t)
	}
	transporttest.Run(t, h)
}
