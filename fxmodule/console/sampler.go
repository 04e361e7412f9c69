package console

import (
	"context"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Limits of samples. All memory of a sampler is maxGroups × maxPoints points of 72 bytes, 4 MiB.
const (
	freshFor   = time.Second // a sample is shown for so long before the message system is asked again
	pointEvery = 5 * time.Second
	maxPoints  = 120 // ten minutes
	maxGroups  = 500 // that have plots
	maxSpan    = pointEvery * maxPoints
)

// point is what the plots show of a group at one time. A number below 0 is unknown.
type point struct {
	at       time.Time
	waiting  int
	poisoned int
	oldest   float64 // age of the oldest message, in seconds

	// Since the point before.
	perSecond float64 // deliveries that were handled
	p50, p99  float64 // time of a delivery, in microseconds
}

// sample is the groups at one time, and the wiring if somebody knows it.
type sample struct {
	at      time.Time
	groups  []driver.GroupInfo
	service *admin.Description // nil if nobody knows it
	earlier *admin.Description // of some minutes before: what was counted since is of the last minutes
}

// sampler asks for the groups while somebody looks, and remembers the last minutes for plots. It has no goroutine: each
// request that finds the last sample too old takes a new one, while others wait for it.
type sampler struct {
	take   func(context.Context) (sample, error)
	lock   chan struct{} // holds an element while locked; a lock that can be waited for within a context
	last   sample
	points map[string][]point // the oldest first
	noted  sample             // when the last points were noted

	// Two samples whose service is known, maxSpan/2 apart. The older one is at most maxSpan old.
	older, newer sample
}

func newSampler(take func(context.Context) (sample, error)) *sampler {
	return &sampler{take: take, lock: make(chan struct{}, 1), points: make(map[string][]point)}
}

// now returns a sample that is fresh, and calls use with it and the points of the last minutes, which are valid until use
// returns.
func (s *sampler) now(ctx context.Context, use func(sample, map[string][]point)) error {
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if time.Since(s.last.at) > freshFor {
		taken, err := s.take(ctx)
		if err != nil {
			return err
		}
		s.last = taken
		if taken.at.Sub(s.noted.at) >= pointEvery {
			s.note(taken)
		}
		s.last.earlier = s.older.service
	}
	use(s.last, s.points)
	return nil
}

// expire makes the next request take a new sample, for what an action has changed.
func (s *sampler) expire(ctx context.Context) {
	select {
	case s.lock <- struct{}{}:
		s.last.at = time.Time{}
		<-s.lock
	case <-ctx.Done():
	}
}

// note adds a point to each group, and forgets groups that are gone.
func (s *sampler) note(taken sample) {
	before, after := descriptions(s.noted.service), descriptions(taken.service)
	kept := make(map[string][]point, len(taken.groups))
	for _, g := range taken.groups[:min(len(taken.groups), maxGroups)] {
		p := point{at: taken.at, waiting: g.Waiting, poisoned: g.Poisoned, oldest: unknown, perSecond: unknown, p50: unknown, p99: unknown}
		switch {
		case !g.Oldest.IsZero():
			p.oldest = max(taken.at.Sub(g.Oldest).Seconds(), 0)
		case g.Waiting == 0:
			p.oldest = 0
		}
		was, is := before[g.Name], after[g.Name]
		if was != nil && is != nil && is.Counts.Handled >= was.Counts.Handled {
			p.perSecond = float64(is.Counts.Handled-was.Counts.Handled) / taken.at.Sub(s.noted.at).Seconds()
			p.p50, p.p99 = quantiles(was.Durations, is.Durations)
		}
		points := append(s.points[g.Name], p)
		points = points[max(0, len(points)-maxPoints):]
		for taken.at.Sub(points[0].at) > maxSpan { // nobody looked for a while
			points = points[1:]
		}
		kept[g.Name] = points
	}
	s.points, s.noted = kept, taken
	if taken.service == nil {
		return
	}
	if taken.at.Sub(s.newer.at) >= maxSpan/2 {
		s.older, s.newer = s.newer, taken
	}
	if taken.at.Sub(s.older.at) > maxSpan { // nobody looked for a while
		s.older = s.newer
	}
}

// descriptions returns the groups of a service by name.
func descriptions(d *admin.Description) map[string]*admin.GroupDescription {
	all := make(map[string]*admin.GroupDescription)
	if d != nil {
		for i, g := range d.Groups {
			all[g.Group] = &d.Groups[i]
		}
	}
	return all
}

// quantiles returns in microseconds how long half and 99 % of the deliveries took at most that ended between two counts. Both
// are unknown if there were none, or if the process has begun anew.
func quantiles(was, is []driver.DurationBucket) (p50, p99 float64) {
	before := make(map[time.Duration]uint64, len(was))
	for _, b := range was {
		before[b.Max] = b.Count
	}
	total := uint64(0)
	for _, b := range is {
		if b.Count < before[b.Max] {
			return unknown, unknown
		}
		total += b.Count - before[b.Max]
	}
	p50, p99 = unknown, unknown
	seen := uint64(0)
	for _, b := range is {
		n := b.Count - before[b.Max]
		if n == 0 {
			continue
		}
		seen += n
		if p50 < 0 && 2*seen >= total {
			p50 = float64(b.Max.Microseconds())
		}
		if p99 < 0 && 100*seen >= 99*total {
			p99 = float64(b.Max.Microseconds())
		}
	}
	return p50, p99
}
