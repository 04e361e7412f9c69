package middleware_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
)

func TestLog_boundsWhatMessagesSay(t *testing.T) {
	var out bytes.Buffer
	observer := middleware.Log(slog.New(slog.NewTextHandler(&out, nil)))
	long := strings.Repeat("x", 100_000)
	msg := message.NewMessage(long, nil)
	msg.Metadata = message.Metadata{driver.HeaderID: long, driver.HeaderType: long, driver.HeaderCorrelationID: long, driver.HeaderPartitionKey: long, driver.HeaderTraceParent: long}
	observer.Finished(t.Context(), &bus.Delivery{Delivery: driver.Delivery{Message: msg, Group: "shop.mail", Topic: long}}, bus.Observation{Outcome: bus.Poisoned, Err: errors.New(long)})
	observer.Published(t.Context(), bus.Publication{Topic: long, Err: errors.New("refused")})
	require.Equal(t, 2, strings.Count(out.String(), "\n"))
	require.Less(t, out.Len(), 4<<10)
}
