package prommetrics

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Defaults of [Groups].
const (
	DefaultRefresh = 15 * time.Second
	DefaultWait    = 50 * time.Millisecond
	DefaultTimeout = 10 * time.Second
)

// GroupsOption changes how [Groups] asks the message system.
type GroupsOption func(*groupsCollector)

// Refresh sets how old the values of [Groups] must be before a scrape has them asked for anew; [DefaultRefresh] without it.
func Refresh(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.refresh = d } }

// Wait sets how long a scrape waits for new values of [Groups] before it shows the last ones; [DefaultWait] without it.
func Wait(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.wait = d } }

// Timeout sets how long the message system has for its answer to [Groups]; [DefaultTimeout] without it.
func Timeout(d time.Duration) GroupsOption { return func(c *groupsCollector) { c.timeout = d } }

// Groups registers a collector of what waits in the message system for the groups of the bus, of all processes that share
// them: [driver.Inspector] counts it. A scrape has the values refreshed if they are older than 15 s, and does not wait for
// that longer than 50 ms: it shows the last values, and leat_groups_age_seconds shows their age. What the message system
// can't count is missing.
//
// Groups returns an error if the bus's transport is no Inspector, or if the metrics are registered already.
func Groups(registerer prometheus.Registerer, b *bus.Bus, opts ...GroupsOption) error {
	inspector, ok := b.Transport().(driver.Inspector)
	if !ok {
		return fmt.Errorf("prommetrics: the transport %T does not count what waits in its groups: %w", b.Transport(), bus.ErrUnsupported)
	}
	c := &groupsCollector{bus: b, inspector: inspector, refresh: DefaultRefresh, wait: DefaultWait, timeout: DefaultTimeout}
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
		gauge("leat_group_parked_keys", "Keys that a poisoned message holds back.", parkedKeys),
		gauge("leat_group_in_flight_messages", "Messages that are handed out and not settled, to any process.", known(func(g driver.GroupInfo) int { return g.InFlight })),
		gauge("leat_group_poisoned_messages", "Messages in the poison queue.", known(func(g driver.GroupInfo) int { return g.Poisoned })),
		gauge("leat_group_consumers", "Processes or connections that consume.", known(func(g driver.GroupInfo) int { return g.Consumers })),
		gauge("leat_group_oldest_seconds", "How long the oldest message has been in the group.", oldestAge),
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

// parkedKeys returns unknown if messages are parked and no key is: the transport does not count keys.
func parkedKeys(g driver.GroupInfo) (float64, bool) {
	return float64(g.ParkedKeys), g.ParkedKeys > 0 || g.ParkedKeys == 0 && g.Parked == 0
}

// oldestAge returns unknown if something waits, and the transport does not say since when.
func oldestAge(g driver.GroupInfo) (float64, bool) {
	if g.Oldest.IsZero() {
		return 0, g.Waiting == 0 && g.Delayed == 0
	}
	return max(time.Since(g.Oldest).Seconds(), 0), true
}

// groupsCollector keeps the last answer of the message system. At most one question is under way.
type groupsCollector struct {
	bus                    *bus.Bus
	inspector              driver.Inspector
	refresh, wait, timeout time.Duration
	gauges                 []groupGauge
	age, failures          *prometheus.Desc

	mu      sync.Mutex
	asking  chan struct{} // closed when the question under way is answered; nil if none is
	asked   time.Time     // when the last question began; zero if there was none
	groups  []driver.GroupInfo
	counted time.Time // when groups was counted; zero if it never was
	failed  int
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
	if asking := c.ask(); asking != nil {
		timer := time.NewTimer(c.wait)
		defer timer.Stop()
		select {
		case <-asking:
		case <-timer.C:
		}
	}
	c.mu.Lock()
	groups, counted, failed := c.groups, c.counted, c.failed
	c.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(c.failures, prometheus.CounterValue, float64(failed))
	if counted.IsZero() {
		return
	}
	ch <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, time.Since(counted).Seconds())
	for _, info := range groups {
		for _, g := range c.gauges {
			if value, ok := g.value(info); ok {
				ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, value, info.Name)
			}
		}
	}
}

// ask begins a question if the values are old and none is under way. It returns a channel that is closed with the answer,
// nil if the values are not old.
func (c *groupsCollector) ask() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking != nil {
		return c.asking
	}
	if !c.asked.IsZero() && time.Since(c.asked) < c.refresh {
		return nil
	}
	c.asked = time.Now()
	done := make(chan struct{})
	c.asking = done
	go func() {
		defer close(done)
		c.count()
	}()
	return done
}

// count asks the message system. A panic of the transport counts as a failure: it must not end the process.
func (c *groupsCollector) count() {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	var own []driver.GroupInfo
	err := fmt.Errorf("prommetrics: %w", bus.ErrGoexit)
	defer func() {
		if v := recover(); v != nil {
			err = driver.NewPanicError(v)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asking = nil
		if err != nil {
			c.failed++
			slog.Default().Debug("leat: groups not counted for metrics", "error", err)
			return
		}
		c.groups, c.counted = own, time.Now()
	}()
	if len(c.bus.Handlers()) == 0 { // then a transport may look for the groups of others
		err = nil
		return
	}
	var all []driver.GroupInfo
	if all, err = c.inspector.Groups(ctx); err == nil {
		own = c.own(all)
	}
}

// own returns the groups of the bus.
func (c *groupsCollector) own(all []driver.GroupInfo) (own []driver.GroupInfo) {
	names := make(map[string]bool)
	for _, h := range c.bus.Handlers() {
		names[c.bus.GroupName(h.Name)] = true
	}
	for _, g := range all {
		if names[g.Name] {
			own = append(own, g)
		}
	}
	return own
}
