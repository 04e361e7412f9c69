package bus_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// A transport may read an attempt number from a header that anybody can write.
func TestRouter_survivesAnyAttemptNumber(t *testing.T) {
	for _, attempt := range []int{math.MinInt64, -1_000_000, -1, 0, 63, 65, math.MaxInt64} {
		t.Run(fmt.Sprint(attempt), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := busOver(t, testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) { d.Attempt = attempt }}, bus.Config{})
				var failed, handled atomic.Int64
				handle(t, b, "h", func(_ context.Context, msg *message.Message) error {
					if driver.MessageID(msg) == "bad" {
						failed.Add(1)
						return errBroken
					}
					handled.Add(1)
					return nil
				})
				run(t, b)
				publish(t, b, "bad", "good")
				time.Sleep(10 * time.Minute)
				require.EqualValues(t, 1, handled.Load())
				require.Greater(t, failed.Load(), int64(5), "it is redelivered")
				require.Less(t, failed.Load(), int64(700), "but in no hot loop")
			})
		})
	}
}

// panickingSettler breaks the contract in the worst way.
type panickingSettler struct {
	driver.Settler
	panics *atomic.Bool
}

func (s panickingSettler) Ack() error {
	if s.panics.Load() {
		panic("the settler is broken")
	}
	return s.Settler.Ack()
}

func TestRouter_survivesAPanicOutsideOfTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var panics atomic.Bool
		panics.Store(true)
		var lines log
		b := busOver(t, testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) {
			d.Settler = panickingSettler{d.Settler, &panics}
		}}, bus.Config{Logger: warnings(&lines)})
		var handled atomic.Int64
		handle(t, b, "h", func(context.Context, *message.Message) error {
			handled.Add(1)
			return nil
		}, concurrency(1))
		stop := run(t, b)
		publish(t, b, "a")
		time.Sleep(time.Minute)
		require.NotZero(t, handled.Load())
		require.Contains(t, strings.Join(lines.all(), "\n"), "the settler is broken")
		panics.Store(false)
		publish(t, b, "b")
		time.Sleep(10 * time.Minute)
		require.EqualValues(t, 0, b.Stats().Groups["h"].InFlight)
		before := handled.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, handled.Load(), "everything is settled")
		require.NoError(t, stop())
	})
}
