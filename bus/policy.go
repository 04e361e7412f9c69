package bus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// RetryPolicy is the delay before each further try of a failing message. Its zero value is the
// default policy: 50 ms, 250 ms and 1 s in process, then 5 s, 30 s, 5 min and 30 min as
// redeliveries, each ±10 %, then the poison queue.
type RetryPolicy struct {
	// Delays is the wait before the second, third, … try. nil means the default; an empty slice
	// means that there is one try only.
	Delays []time.Duration
	// InProcess is the longest delay that is waited for in process, holding the worker; longer ones
	// go back to the transport as a delayed redelivery, which holds none. 0 means 1 s; a negative
	// value means that no delay is waited for in process.
	InProcess time.Duration
	// Jitter spreads each delay by up to this share, up and down. 0 means 0.1; a negative value
	// means none.
	Jitter float64
	// CrashLimit is how often a message may be redelivered because nobody settled it (the process was
	// killed, the connection was lost) before it is poisoned without another try. Such redeliveries cost no
	// try. 0 means 5.
	CrashLimit int
}

// RetryRule is the retry policy of some errors, in place of the handler's. A handler has a list of
// them, and the first that matches an error counts. What the handler itself asks for, by [Permanent],
// [Discard] or [Snooze], goes before all rules.
//
// All failures of a message count, over all its deliveries and whatever their errors were: if it fails now with one
// error and now with another, each policy goes on at the number of failures so far.
type RetryRule struct {
	// Match reports whether the rule is for the error. It must look through wrappers, as errors.Is and
	// errors.As do.
	Match func(error) bool
	// Policy is nil where a matching error is permanent, as if it were marked by [Permanent].
	Policy *RetryPolicy
}

// Validate says what is wrong with the rule.
func (r RetryRule) Validate() error {
	if r.Match == nil {
		return errors.New("bus: retry rule: it matches no error; give it a Match")
	}
	if r.Policy == nil {
		return nil
	}
	return r.Policy.Validate()
}

// OneTry returns the policy without a second try.
func OneTry() RetryPolicy { return RetryPolicy{Delays: []time.Duration{}} }

func defaultDelays() []time.Duration {
	return []time.Duration{
		50 * time.Millisecond, 250 * time.Millisecond, time.Second,
		5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute,
	}
}

// WithDefaults returns the policy with every zero field filled in.
func (p RetryPolicy) WithDefaults() RetryPolicy {
	if p.Delays == nil {
		p.Delays = defaultDelays()
	}
	if p.InProcess == 0 {
		p.InProcess = time.Second
	}
	if p.Jitter == 0 {
		p.Jitter = 0.1
	}
	if p.CrashLimit == 0 {
		p.CrashLimit = 5
	}
	return p
}

// Validate says what is wrong with the policy.
func (p RetryPolicy) Validate() error {
	if i := slices.IndexFunc(p.Delays, func(d time.Duration) bool { return d < 0 }); i >= 0 {
		return fmt.Errorf("bus: retry policy: delay %d is %s; a delay can't be negative", i+1, p.Delays[i])
	}
	if p.Jitter >= 1 {
		return fmt.Errorf("bus: retry policy: jitter %v; it is a share below 1", p.Jitter)
	}
	if p.CrashLimit < 0 {
		return fmt.Errorf("bus: retry policy: crash limit %d; it can't be negative", p.CrashLimit)
	}
	return nil
}

// Tries returns how often the policy lets a message be tried in all.
func (p RetryPolicy) Tries() int { return len(p.WithDefaults().Delays) + 1 }

// FirstTry returns the number of the first try that belongs to the delivery with this attempt number, if
// all its earlier deliveries ended with redeliveries by this policy. Both count from 1. Attempts beyond the policy
// belong to its last delivery. It is for messages whose failures were not counted; see [FailuresUnknown].
func (p RetryPolicy) FirstTry(attempt int) int {
	p = p.WithDefaults()
	first := 1
	for i, d := range p.Delays {
		if attempt <= 1 {
			break
		}
		if d > p.InProcess {
			first = i + 2
			attempt--
		}
	}
	return first
}

// Spread returns d with the policy's jitter.
func (p RetryPolicy) Spread(d time.Duration) time.Duration {
	jitter := p.WithDefaults().Jitter
	if jitter <= 0 {
		return d
	}
	return time.Duration(float64(d) * (1 + jitter*(2*rand.Float64()-1)))
}

// String shows the policy as people read it, "50ms 250ms 1s | 5s 30s ±10%": the bar stands between
// the delays that are waited for in process and the redeliveries.
func (p RetryPolicy) String() string {
	p = p.WithDefaults()
	if len(p.Delays) == 0 {
		return "one try"
	}
	var b strings.Builder
	for i, d := range p.Delays {
		if i > 0 {
			b.WriteByte(' ')
		}
		if d > p.InProcess && i > 0 && p.Delays[i-1] <= p.InProcess {
			b.WriteString("| ")
		}
		b.WriteString(shortDuration(d))
	}
	if p.Jitter > 0 {
		fmt.Fprintf(&b, " ±%.0f%%", p.Jitter*100)
	}
	return b.String()
}

// shortDuration returns "5m" for what time.Duration prints as "5m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
