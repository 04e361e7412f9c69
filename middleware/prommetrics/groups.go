package prommetrics

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware/internal/groupcounts"
)

// Defaults of [Groups].
const (
	DefaultRefresh = groupcounts.DefaultRefresh
	DefaultWait    = groupcounts.DefaultWait
	DefaultTimeout = groupcounts.DefaultTimeout
)

// GroupsOption changes how [Groups] asks the message system.
type GroupsOption func(*groupsCollector)

// Refresh sets how old the values of [Groups] must be before a scrape has them asked for anew; [DefaultRefresh] without it.
func Refresh(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.counter.Refresh = d } }

// Wait sets how long a scrape waits for new values of [Groups] before it shows the last ones; [DefaultWait] without it.
func Wait(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.counter.Wait = d } }

// Timeout sets how long the message system has for its answer to [Groups]; [DefaultTimeout] without it.
func Timeout(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.counter.Timeout = d } }

// Groups registers a collector of what waits in the message system for the groups of the bus, of all processes that share
// them: [driver.Inspector] counts it. A scrape has the values refreshed if they are older than 15 s, and does not wait for
// that longer than 50 ms: it shows the last values, and leat_groups_age_seconds shows their age. What the message system
// can't count is missing.
//
// Groups returns an error if the bus's transport is no Inspector, or if the metrics are registered already.
func Groups(registerer prometheus.Registerer, b *bus.Bus, opts ...GroupsOption) error {
	counter, err := groupcounts.New(b)
	if err != nil {
		return fmt.Errorf("prommetrics: %w", err)
	}
	c := &groupsCollector{counter: counter}
	for _, opt := range opts {
		opt(c)
	}
	gauge := func(name, help string, value func(driver.GroupInfo) (float64, bool)) groupGauge {
		return groupGauge{prometheus.NewDesc(name, help, []string{"group"}, nil), value}
	}
	c.gauges = []groupGauge{
		gauge("leat_group_waiting_messages", "Messages that could be handed out now.", known(func(g driver.GroupInfo) int { return g.Waiting })),
		gauge("leat_group_delayed_messages", "Messages that wait for a time.", known(func(g driver.GroupInfo) int { return g.Delayed })),
		gauge("leat_group_parked_messages", "Messages that wait behind a poisoned one of their key.", known(func(g driver.GroupInfo) int { return g.Parked })),
		gauge("leat_group_parked_keys", "Keys that a poisoned message holds back.", groupcounts.ParkedKeys),
		gauge("leat_group_in_flight_messages", "Messages that are handed out and not settled, to any process.", known(func(g driver.GroupInfo) int { return g.InFlight })),
		gauge("leat_group_poisoned_messages", "Messages in the poison queue.", known(func(g driver.GroupInfo) int { return g.Poisoned })),
		gauge("leat_group_consumers", "Processes or connections that consume.", known(func(g driver.GroupInfo) int { return g.Consumers })),
		gauge("leat_group_oldest_seconds", "How long the oldest message has been in the group.", groupcounts.OldestAge),
	}
	c.age = prometheus.NewDesc("leat_groups_age_seconds", "How old the values of leat_group_* from the message system are.", nil, nil)
	c.failures = prometheus.NewDesc("leat_groups_refresh_errors_total", "How often the message system could not be asked for them.", nil, nil)
	return registerer.Register(c)
}

type groupGauge struct {
	desc  *prometheus.Desc
	value func(driver.GroupInfo) (value float64, ok bool)
}

func known(count func(driver.GroupInfo) int) func(driver.GroupInfo) (float64, bool) {
	return func(g driver.GroupInfo) (float64, bool) { return float64(count(g)), count(g) >= 0 }
}

// groupsCollector shows the last answer of the message system.
type groupsCollector struct {
	counter       *groupcounts.Counter
	gauges        []groupGauge
	age, failures *prometheus.Desc
}

// Describe says which metrics there are.
func (c *groupsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		ch <- g.desc
	}
	ch <- c.age
	ch <- c.failures
}

// Collect shows the last values, and has old ones refreshed.
func (c *groupsCollector) Collect(ch chan<- prometheus.Metric) {
	counts := c.counter.Counts()
	ch <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(counts.Failures))
	if counts.At.IsZero() {
		return
	}
	ch <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, time.Since(counts.At).Seconds())
	for _, info := range counts.Groups {
		for _, g := range c.gauges {
			if value, ok := g.value(info); ok {
				ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, value, info.Name)
			}
		}
	}
}
