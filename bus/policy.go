package bus

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// RetryPolicy configures how often a failing message is tried, and the delays between the tries. The zero value is the
// default policy: 50 ms, 250 ms and 1 s in process, then 5 s, 30 s, 5 min and 30 min as redeliveries, each ±10 %, then the
// poison queue.
type RetryPolicy struct {
	// Delays are the delays before the second, third, … try. nil means the default; an empty slice means one try only.
	Delays []time.Duration
	// InProcess is the longest delay for which the worker waits in process. Longer delays are redeliveries by the transport,
	// for which no worker waits. 0 means 1 s; a negative value means that workers never wait.
	InProcess time.Duration
	// Jitter changes each delay at random by up to this share, in both directions. 0 means 0.1; a negative value means none.
	Jitter float64
	// CrashLimit is how often a message may be redelivered because it was not settled (the process was killed, or the
	// connection was lost) before it is poisoned without another try. Such redeliveries do not count as tries. 0 means 5.
	CrashLimit int
}

// RetryRule is the retry policy for certain errors, in place of the handler's. A handler has a list of rules, and the first
// that matches an error applies. [Permanent], [Discard] and [Snooze] go before all rules.
//
// All failures of a message count together, whatever their errors were: if its errors alternate between two rules, each
// policy continues at the total number of failures.
type RetryRule struct {
	// Match reports whether the rule applies to the error. Errors may be wrapped, so use errors.Is and errors.As.
	Match func(error) bool
	// Policy is the policy for a matching error. nil means that the error is permanent, as if wrapped by [Permanent].
	Policy *RetryPolicy
}

// Validate returns an error if the rule is invalid.
func (r RetryRule) Validate() error {
	if r.Match == nil {
		return errors.New("bus: retry rule: it matches no error; give it a Match")
	}
	if r.Policy == nil {
		return nil
	}
	return r.Policy.Validate()
}

// OneTry returns the policy that never retries.
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
	p.InProcess = cmp.Or(p.InProcess, time.Second)
	p.Jitter = cmp.Or(p.Jitter, 0.1)
	p.CrashLimit = cmp.Or(p.CrashLimit, 5)
	return p
}

// Validate returns an error if the policy is invalid.
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

// Tries returns the largest number of tries that the policy allows, the first included.
func (p RetryPolicy) Tries() int { return len(p.WithDefaults().Delays) + 1 }

// FirstTry returns the number of the first try in the delivery with this attempt number, if all earlier deliveries ended with
// a redelivery by this policy. Both numbers start at 1. If attempt is higher than the policy allows, the result is that of
// the last delivery. It is for messages whose failures were not counted; see [driver.FailuresUnknown].
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

// Spread returns d changed at random by the policy's jitter.
func (p RetryPolicy) Spread(d time.Duration) time.Duration {
	jitter := p.WithDefaults().Jitter
	if jitter <= 0 {
		return d
	}
	return time.Duration(float64(d) * (1 + jitter*(2*rand.Float64()-1)))
}

// String returns the policy as text, such as "50ms 250ms 1s | 5s 30s ±10%". The bar separates delays in process from
// redeliveries.
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

// shortDuration formats d like time.Duration, but "5m" in place of "5m0s".
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
