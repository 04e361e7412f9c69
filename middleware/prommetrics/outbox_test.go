package prommetrics_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

// waiting is an outbox in which something waits.
type waiting struct {
	driver.Outbox
	stats driver.OutboxStats
	err   error
}

func (o *waiting) Stats(context.Context) (driver.OutboxStats, error) { return o.stats, o.err }
func (o *waiting) Close(context.Context) error                       { return nil }

func TestOutbox_metrics(t *testing.T) {
	o := &waiting{stats: driver.OutboxStats{Pending: 7, OldestAge: 1500 * time.Millisecond}}
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "test", Outbox: o})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	registry := prometheus.NewRegistry()
	require.NoError(t, prommetrics.Outbox(registry, b))
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_outbox_oldest_seconds How long the first of them has been waiting.
# TYPE leat_outbox_oldest_seconds gauge
leat_outbox_oldest_seconds 1.5
# HELP leat_outbox_pending_messages Committed messages that are not relayed yet, by all processes that share the outbox.
# TYPE leat_outbox_pending_messages gauge
leat_outbox_pending_messages 7
`)))
	o.err = errors.New("the database is away")
	n, err := testutil.GatherAndCount(registry)
	require.NoError(t, err)
	require.Zero(t, n)
}
