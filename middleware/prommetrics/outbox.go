package prommetrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
)

// outboxTimeout bounds what a scrape waits for the outbox's database.
const outboxTimeout = 5 * time.Second

// Outbox registers a collector that asks the bus's outbox at every scrape how much waits in it, and for
// how long. While its database can't be asked, the two are missing.
func Outbox(registerer prometheus.Registerer, b *bus.Bus) error {
	return registerer.Register(outboxCollector{
		bus:     b,
		pending: prometheus.NewDesc("leat_outbox_pending_messages", "Committed messages that are not relayed yet, by all processes that share the outbox.", nil, nil),
		oldest:  prometheus.NewDesc("leat_outbox_oldest_seconds", "How long the first of them has been waiting.", nil, nil),
	})
}

type outboxCollector struct {
	bus             *bus.Bus
	pending, oldest *prometheus.Desc
}

func (c outboxCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.pending
	ch <- c.oldest
}

func (c outboxCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), outboxTimeout)
	defer cancel()
	stats, err := c.bus.OutboxStats(ctx)
	if err != nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(c.pending, prometheus.GaugeValue, float64(stats.Pending))
	ch <- prometheus.MustNewConstMetric(c.oldest, prometheus.GaugeValue, stats.OldestAge.Seconds())
}
