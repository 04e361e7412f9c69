package monitoring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

// The rules are run against what a bus really shows: a program with one fault runs for an hour of virtual time and is
// scraped every 15 seconds.
const (
	scrapeEvery = 15 * time.Second
	runFor      = time.Hour
)

type orderPaid struct {
	Order string `json:"order"`
	Kind  string `json:"kind"`
}

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }
func (e orderPaid) PartitionKey() string   { return e.Order }

// orderPaidAgain is of a version that the program does not know.
type orderPaidAgain struct{ orderPaid }

func (orderPaidAgain) EventType() (string, int) { return "order.paid", 2 }

type nobodyWants struct{}

func (nobodyWants) EventType() (string, int) { return "order.forgotten", 1 }

// faulty is a memory transport with faults.
type faulty struct {
	*memory.Transport
	health  atomic.Pointer[driver.TransportHealth]
	publish atomic.Pointer[error]
	groups  atomic.Pointer[error]
}

func (f *faulty) Health() driver.TransportHealth {
	if h := f.health.Load(); h != nil {
		return *h
	}
	return f.Transport.Health()
}

func (f *faulty) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := f.publish.Load(); err != nil {
		return *err
	}
	return f.Transport.Publish(ctx, topic, msgs...)
}

func (f *faulty) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	if err := f.groups.Load(); err != nil {
		return nil, *err
	}
	return f.Transport.Groups(ctx)
}

// stuck is an outbox that does not move.
type stuck struct{ since time.Time }

func (*stuck) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }
func (*stuck) Group() string                                                     { return "outbox" }
func (*stuck) Relay(ctx context.Context, _ driver.PublishFunc) error             { <-ctx.Done(); return nil }
func (*stuck) Close(context.Context) error                                       { return nil }

func (s *stuck) Problem() error {
	if s.since.IsZero() {
		return nil
	}
	return errAway
}

func (s *stuck) Stats(context.Context) (driver.OutboxStats, error) {
	if s.since.IsZero() {
		return driver.OutboxStats{}, nil
	}
	return driver.OutboxStats{Pending: 3, OldestAge: time.Since(s.since)}, nil
}

var errAway = errors.New("it is away")

// noStore is a dedup store that can't be reached.
type noStore struct{ middleware.Store }

func (noStore) Claim(context.Context, string, time.Duration) (middleware.Claim, error) {
	return middleware.Claim{}, errAway
}
func (noStore) Release(context.Context, middleware.Claim) error             { return errAway }
func (noStore) Done(context.Context, middleware.Claim, time.Duration) error { return errAway }

// program is what a scenario may break.
type program struct {
	transport *faulty
	outbox    *stuck
	store     middleware.Store // nil: in memory
	handle    func(context.Context, orderPaid) error
	publish   func(i int) bus.Event // nil: a good event; called each second
	begin     func()
}

// scenarios are faults with the alerts that fire for them, each alone but for those named beside it.
var scenarios = map[string]struct {
	alerts []string
	spoil  func(p *program)
}{
	"nothing": {nil, func(*program) {}},
	"a poisoned message stops its key": {[]string{"LeatPoisonedMessages", "LeatParkedMessages"}, func(p *program) {
		p.handle = func(_ context.Context, e orderPaid) error {
			if e.Order == "3" {
				return bus.Permanent(errors.New("no such account"))
			}
			return nil
		}
	}},
	"everything fails": {[]string{"LeatGroupPaused", "LeatOldMessages", "LeatDeliveriesFail"}, func(p *program) {
		p.handle = func(context.Context, orderPaid) error { return errAway }
	}},
	"the handler is too slow": {[]string{"LeatOldMessages"}, func(p *program) {
		p.handle = func(ctx context.Context, _ orderPaid) error {
			select {
			case <-ctx.Done():
			case <-time.After(25 * time.Second):
			}
			return nil
		}
	}},
	"a handler panics now and then": {[]string{"LeatPanics"}, func(p *program) {
		var n atomic.Int64
		p.handle = func(context.Context, orderPaid) error {
			if n.Add(1)%600 == 0 {
				panic("nil order")
			}
			return nil
		}
	}},
	"a newer version waits for newer processes": {[]string{"LeatGroupDegraded"}, func(p *program) {
		p.publish = func(i int) bus.Event {
			if i == 60 {
				return orderPaidAgain{orderPaid{Order: "7"}}
			}
			return orderPaid{Order: "8"}
		}
	}},
	"the dedup store is away": {[]string{"LeatDedupFaults"}, func(p *program) { p.store = noStore{} }},
	"the connection is lost":  {[]string{"LeatTransportDown"}, func(p *program) { p.transport.health.Store(&driver.TransportHealth{Transport: "memory", Err: errAway}) }},
	"the broker is full": {[]string{"LeatTransportBlocked"}, func(p *program) {
		p.transport.health.Store(&driver.TransportHealth{Transport: "memory", Connected: true, Blocked: "memory"})
	}},
	"publishing fails":            {[]string{"LeatPublishErrors"}, func(p *program) { p.transport.publish.Store(&errAway) }},
	"nobody wants a topic":        {[]string{"LeatUnroutedMessages"}, func(p *program) { p.publish = func(int) bus.Event { return nobodyWants{} } }},
	"the outbox does not move":    {[]string{"LeatOutboxStuck"}, func(p *program) { p.begin = func() { p.outbox.since = time.Now() } }},
	"nobody counts what is there": {[]string{"LeatGroupsNotCounted"}, func(p *program) { p.begin = func() { p.transport.groups.Store(&errAway) } }},
}

func TestAlerts_fireForTheirFaultAndForNoOther(t *testing.T) {
	rules := readRules(t)
	fired := make(map[string]bool)
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) {
			series := play(t, s.spoil)
			var alerts []string
			for _, r := range rules {
				if firing(t, series, r) {
					alerts = append(alerts, r.Alert)
				}
			}
			require.ElementsMatch(t, s.alerts, alerts)
			for _, alert := range alerts {
				fired[alert] = true
			}
		})
	}
	for _, r := range rules {
		require.True(t, fired[r.Alert], "no scenario makes %s fire", r.Alert)
	}
}

// play runs a program for an hour of virtual time and returns what its scrapes showed.
func play(t *testing.T, spoil func(*program)) (all samples) {
	all = make(samples)
	synctest.Test(t, func(t *testing.T) {
		p := &program{transport: &faulty{Transport: memory.New(memory.Config{})}, outbox: &stuck{}, handle: func(context.Context, orderPaid) error { return nil }}
		spoil(p)
		registry := prometheus.NewRegistry()
		observer, err := prommetrics.New(registry)
		require.NoError(t, err)
		b, err := bus.New(p.transport, bus.Config{
			Service: "shop", Stack: middleware.Standard(middleware.Config{Store: p.store}), Observers: []bus.Observer{observer},
			Outbox: p.outbox, Logger: slog.New(slog.DiscardHandler), DrainTimeout: time.Minute,
		})
		require.NoError(t, err)
		require.NoError(t, b.Handle(handlers.Func("ledger", func(ctx context.Context, e orderPaid) error { return p.handle(ctx, e) },
			handlers.Concurrency(20), handlers.OrderedByKey())))
		for _, register := range []func(prometheus.Registerer, *bus.Bus) error{
			prommetrics.Health, prommetrics.Outbox,
			func(r prometheus.Registerer, b *bus.Bus) error { return prommetrics.Groups(r, b) },
		} {
			require.NoError(t, register(registry, b))
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		<-b.Running()
		all.scrape(t, registry) // before the fault: what is counted begins at 0, and what is asked for is known
		time.Sleep(scrapeEvery)
		if p.begin != nil {
			p.begin()
		}
		for i := range int(runFor / time.Second) {
			var e bus.Event = orderPaid{Order: strconv.Itoa(i % 100)}
			if p.publish != nil {
				e = p.publish(i)
			}
			publishing, giveUp := context.WithTimeout(ctx, time.Second/2)
			_ = b.Publish(publishing, e)
			giveUp()
			if time.Duration(i)*time.Second%scrapeEvery == 0 {
				all.scrape(t, registry)
			}
			time.Sleep(time.Second)
		}
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, b.Close(context.Background()))
	})
	return all
}

// samples are what scrapes showed, by series.
type samples map[string]*series

type series struct {
	labels labels.Labels
	values []chunks.Sample
}

type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                    { return s.at }
func (s sample) ST() int64                   { return 0 }
func (s sample) F() float64                  { return s.value }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// scrape adds what a registry shows now, as the job "shop".
func (all samples) scrape(t *testing.T, registry *prometheus.Registry) {
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			add := func(suffix string, value float64, more ...string) {
				pairs := append([]string{"__name__", f.GetName() + suffix, "job", "shop"}, more...)
				for _, l := range m.Label {
					pairs = append(pairs, l.GetName(), l.GetValue())
				}
				ls := labels.FromStrings(pairs...)
				s := all[ls.String()]
				if s == nil {
					s = &series{labels: ls}
					all[ls.String()] = s
				}
				s.values = append(s.values, sample{time.Now().UnixMilli(), value})
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				add("", m.GetCounter().GetValue())
			case dto.MetricType_GAUGE:
				add("", m.GetGauge().GetValue())
			case dto.MetricType_HISTOGRAM:
				h := m.GetHistogram()
				for _, b := range h.Bucket {
					add("_bucket", float64(b.GetCumulativeCount()), "le", fmt.Sprint(b.GetUpperBound()))
				}
				add("_bucket", float64(h.GetSampleCount()), "le", fmt.Sprint(math.Inf(1)))
				add("_sum", h.GetSampleSum())
				add("_count", float64(h.GetSampleCount()))
			default:
				t.Fatalf("%s is a %s, which this test does not read", f.GetName(), f.GetType())
			}
		}
	}
}

// Select implements a storage for PromQL.
func (all samples) Select(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{next: -1}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		matches := func(m *labels.Matcher) bool { return m.Matches(s.labels.Get(m.Name)) }
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !matches(m) }) {
			set.series = append(set.series, storage.NewListSeries(s.labels, s.values))
		}
	}
	return set
}

type seriesSet struct {
	series []storage.Series
	next   int
}

func (s *seriesSet) Next() bool                      { s.next++; return s.next < len(s.series) }
func (s *seriesSet) At() storage.Series              { return s.series[s.next] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// run returns how many series an expression has at each of the times.
func run(t *testing.T, all samples, expr string, from, to time.Time, step time.Duration) map[int64]int {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{
		Logger: slog.New(slog.DiscardHandler), MaxSamples: 10_000_000, Timeout: time.Minute, Parser: parser.NewParser(parser.Options{}),
	})
	queryable := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: all.Select}}
	query, err := engine.NewRangeQuery(context.Background(), queryable, nil, expr, from, to, step)
	require.NoError(t, err, expr)
	defer query.Close()
	matrix, err := query.Exec(context.Background()).Matrix()
	require.NoError(t, err, expr)
	found := make(map[int64]int)
	for _, s := range matrix {
		for _, point := range s.Floats {
			found[point.T]++
		}
	}
	return found
}

// span returns the time of the first scrape and of the last.
func (all samples) span() (from, to time.Time) {
	first, last := int64(math.MaxInt64), int64(0)
	for _, s := range all {
		first, last = min(first, s.values[0].T()), max(last, s.values[len(s.values)-1].T())
	}
	return time.UnixMilli(first), time.UnixMilli(last)
}

// firing reports whether an alert fires at some time of the run: its expression is true for as long as the rule says.
func firing(t *testing.T, all samples, r rule) bool {
	t.Helper()
	const step = 30 * time.Second
	from, to := all.span()
	found := run(t, all, r.Expr, from, to, step)
	wait, err := time.ParseDuration(max(r.For, "0s"))
	require.NoError(t, err)
	held := time.Duration(0)
	for at := from; !at.After(to); at = at.Add(step) {
		if found[at.UnixMilli()] == 0 {
			held = 0
			continue
		}
		if held >= wait {
			return true
		}
		held += step
	}
	return false
}

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) (all []rule) {
	t.Helper()
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	var file struct{ Groups []struct{ Rules []rule } }
	require.NoError(t, yaml.Unmarshal(text, &file))
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// Each panel of the dashboard shows something of a run with traffic, but for those of things that this program has not.
func TestDashboard_showsARun(t *testing.T) {
	all := play(t, func(p *program) {
		p.handle = func(_ context.Context, e orderPaid) error {
			if e.Order == "3" {
				return bus.Permanent(errors.New("no such account"))
			}
			return nil
		}
	})
	from, to := all.span()
	for _, expr := range dashboardExprs(t) {
		if strings.Contains(expr, "leat_breaker_changes_total") {
			continue // nothing has paused the group
		}
		require.NotEmpty(t, run(t, all, expr, from, to, time.Minute), expr)
	}
}

// dashboardExprs returns the expressions of the dashboard with its variables filled in.
func dashboardExprs(t *testing.T) (all []string) {
	t.Helper()
	for _, p := range readDashboard(t) {
		for _, target := range p.Targets {
			all = append(all, strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$group", ".*").Replace(target.Expr))
		}
	}
	return all
}
