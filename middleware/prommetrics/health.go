package prommetrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
)

// Health registers a collector that asks the bus at every scrape how its groups and its transport are, and what it has
// counted since it was made. Nothing of it asks the message system. A transport without health has no metrics.
func Health(registerer prometheus.Registerer, b *bus.Bus) error {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return registerer.Register(healthCollector{
		bus:        b,
		degraded:   desc("leat_group_degraded", "1 while a part of the group does not work.", "group", "part"),
		connected:  desc("leat_transport_connected", "1 while the message system can be reached.", "transport"),
		blocked:    desc("leat_transport_blocked", "1 while the message system accepts no messages.", "transport"),
		reconnects: desc("leat_transport_reconnects_total", "Connections that were lost and made again.", "transport"),
		unroutable: desc("leat_transport_unroutable_total", "Messages published that no group wanted.", "transport"),
		retries:    desc("leat_retries_total", "Tries in process that followed a failed one, without a new delivery.", "group"),
		panics:     desc("leat_panics_total", "Panics of handlers and of steps.", "group"),
		dedup:      desc("leat_dedup_faults_total", "Calls of the dedup store that failed.", "group"),
		observers:  desc("leat_observer_panics_total", "Panics of observers."),
	})
}

type healthCollector struct {
	bus                                                  *bus.Bus
	degraded, connected, blocked, reconnects, unroutable *prometheus.Desc
	retries, panics, dedup, observers                    *prometheus.Desc
}

// Describe says which metrics there are.
func (c healthCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.degraded, c.connected, c.blocked, c.reconnects, c.unroutable, c.retries, c.panics, c.dedup, c.observers} {
		ch <- desc
	}
}

// Collect asks the bus.
func (c healthCollector) Collect(ch chan<- prometheus.Metric) {
	for _, h := range c.bus.Health() {
		for part := range h.Degraded {
			ch <- prometheus.MustNewConstMetric(c.degraded, prometheus.GaugeValue, 1, h.Group, part)
		}
	}
	c.counts(ch)
	h, ok := c.bus.TransportHealth()
	if !ok {
		return
	}
	tell := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, h.Transport)
	}
	tell(c.connected, prometheus.GaugeValue, oneIf(h.Connected))
	tell(c.blocked, prometheus.GaugeValue, oneIf(h.Blocked != ""))
	tell(c.reconnects, prometheus.CounterValue, float64(h.Reconnects))
	tell(c.unroutable, prometheus.CounterValue, float64(h.Unroutable))
}

// counts tells what the bus has counted.
func (c healthCollector) counts(ch chan<- prometheus.Metric) {
	stats := c.bus.Stats()
	tell := func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	for handler, s := range stats.Groups {
		group := c.bus.GroupName(handler)
		tell(c.retries, s.Retries, group)
		tell(c.panics, s.Panics, group)
		tell(c.dedup, s.DedupFaults, group)
	}
	tell(c.observers, stats.ObserverPanics)
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}
