package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/breaker"
	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var errDown = errors.New("dependency is down")

// group is a group with a breaker, whose messages succeed and fail as a test says.
type group struct {
	*breaker.Breaker
	succeeded uint64
	changes   []breaker.Change
	n         int // messages so far
}

// newGroup returns a group whose breaker needs three failing messages and two successful probes.
func newGroup(t *testing.T, set func(*breaker.Config)) *group {
	t.Helper()
	g := &group{}
	cfg := breaker.Config{
		Messages: 3, Share: 0.9, Patience: 5 * time.Second, Probe: time.Second, MaxProbe: 30 * time.Second, MaxPause: 4 * time.Hour,
		Successes: 2, ProbeTimeout: 40 * time.Second,
		Succeeded: func() uint64 { return g.succeeded },
		Changed:   func(c breaker.Change) { g.changes = append(g.changes, c) },
	}
	if set != nil {
		set(&cfg)
	}
	g.Breaker = breaker.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	g.Start(ctx)
	t.Cleanup(func() {
		g.Stop()
		cancel()
	})
	return g
}

// fail lets a new message fail that first failed age ago.
func (g *group) fail(age time.Duration, set func(*breaker.Failure)) breaker.Verdict {
	g.n++
	f := breaker.Failure{Err: errDown, Since: time.Now().Add(-age), Next: time.Second}
	if set != nil {
		set(&f)
	}
	return g.Failed(&breaker.Message{ID: fmt.Sprint("message ", g.n), Started: time.Now()}, f)
}

// failAll lets new messages fail for 5 s, the patience of the breaker.
func (g *group) failAll(messages int) {
	for i := range messages {
		g.fail(0, nil)
		if i == messages-2 {
			time.Sleep(5 * time.Second)
		}
	}
}

func last(f *breaker.Failure) { f.Last = true }

// Rule 1: enough different messages fail, nearly none succeeds, and this lasts, or a message would be poisoned.
func TestBreaker_pausesWhenNearlyEverythingFails(t *testing.T) {
	for name, test := range map[string]struct {
		set   func(*breaker.Config)
		fail  func(*group)
		pause bool
	}{
		"for the patience":        {fail: func(g *group) { g.failAll(3) }, pause: true},
		"too few messages":        {fail: func(g *group) { g.failAll(2); g.fail(0, nil) }, set: func(c *breaker.Config) { c.Messages = 4 }},
		"for less than patience":  {fail: func(g *group) { g.fail(0, nil); g.fail(0, nil); g.fail(0, nil) }},
		"a message has no try":    {fail: func(g *group) { g.fail(0, nil); g.fail(0, nil); g.fail(0, last) }, pause: true},
		"others succeed":          {fail: func(g *group) { g.fail(0, nil); g.succeeded++; g.failAll(2) }},
		"after a long quiet time": {fail: func(g *group) { g.fail(0, nil); g.fail(0, nil); time.Sleep(2 * time.Minute); g.fail(0, last) }},
		"bugs do not count": {fail: func(g *group) {
			for range 5 {
				g.fail(0, func(f *breaker.Failure) { f.Bug, f.Last = true, true })
			}
		}},
		"one message of a strict group": {
			set:  func(c *breaker.Config) { c.Strict, c.Parks, c.Ordered = true, true, true },
			fail: func(g *group) { g.fail(0, last) }, pause: true,
		},
		"disabled": {set: func(c *breaker.Config) { c.Messages = -1 }, fail: func(g *group) { g.failAll(5) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t, test.set)
				time.Sleep(time.Second)
				test.fail(g)
				require.Equal(t, test.pause, g.Paused())
				require.Equal(t, test.pause, len(g.changes) == 1)
			})
		})
	}
}

// Rule 2: a message fails for long, would be poisoned or delayed for long, and no other has succeeded since.
func TestBreaker_pausesForOneMessageIfNoOtherSucceeds(t *testing.T) {
	const long = 2 * time.Minute
	parks := func(c *breaker.Config) { c.Parks, c.Ordered = true, true }
	slow := func(f *breaker.Failure) { f.Next = 5 * time.Minute }
	for name, test := range map[string]struct {
		set     func(*breaker.Config)
		age     time.Duration
		failure func(*breaker.Failure)
		success bool // another message has succeeded since
		want    breaker.Verdict
		pause   bool
	}{
		"last try of an old message":         {age: long, failure: last, pause: true},
		"last try of a young message":        {age: time.Second, failure: last},
		"another has succeeded":              {age: long, failure: last, success: true},
		"long delay":                         {age: long, failure: slow, pause: true},
		"long delay of a young message":      {age: 20 * time.Second, failure: slow, want: breaker.Verdict{Spared: true, After: 40 * time.Second}},
		"long delay that a handler asks":     {age: long, failure: func(f *breaker.Failure) { slow(f); f.Asked = true }},
		"short delay":                        {age: long},
		"parking, older than the patience":   {set: parks, age: 6 * time.Second, failure: last, pause: true},
		"parking, before the patience":       {set: parks, age: time.Second, failure: last, want: breaker.Verdict{Spared: true, After: 4 * time.Second}},
		"parking, but another has succeeded": {set: parks, age: 6 * time.Second, failure: last, success: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t, test.set)
				time.Sleep(time.Second)
				if test.success {
					g.fail(0, nil) // takes a sample of the count
					g.succeeded++
					time.Sleep(test.age)
				}
				v := g.fail(test.age, test.failure)
				require.Equal(t, test.pause, g.Paused())
				if test.pause {
					require.True(t, v.Spared)
					require.True(t, v.Paused)
				} else {
					require.Equal(t, test.want, v)
				}
			})
		})
	}
}

// probe waits for the probe token, and handles a message as a probe. It returns how long the token took.
func (g *group) probe(t *testing.T, m *breaker.Message) time.Duration {
	t.Helper()
	began := time.Now()
	in := g.Intake()
	select {
	case <-in.Probe():
	case <-time.After(time.Hour):
		t.Fatal("no probe token in an hour")
	}
	g.BeginProbe()
	m.Started = time.Now()
	g.Probing(in, m)
	return time.Since(began)
}

func (g *group) states() (states []breaker.State) {
	for _, c := range g.changes {
		states = append(states, c.To)
	}
	return states
}

// Rule 3: a paused group handles single messages as probes, and resumes when they succeed.
func TestBreaker_probesUntilItResumes(t *testing.T) {
	t.Run("resumes after two successes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			in := g.Intake()
			var m breaker.Message
			require.Equal(t, time.Second, g.probe(t, &m))
			g.ProbeEnded(&m, true)
			require.Zero(t, g.probe(t, &m), "the next probe follows at once")
			require.True(t, g.Paused())
			g.ProbeEnded(&m, true)
			require.False(t, g.Paused())
			<-in.Resumed()
			require.Equal(t, []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Closed}, g.states())
			require.Equal(t, time.Second, g.changes[2].After)
		})
	})
	t.Run("waits twice as long after each failed probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			for _, seconds := range []int{1, 2, 4, 8, 16, 30, 30} {
				m := breaker.Message{ID: "probe"}
				require.Equal(t, time.Duration(seconds)*time.Second, g.probe(t, &m))
				v := g.Failed(&m, breaker.Failure{Err: errDown, Since: time.Now()})
				require.True(t, v.Spared)
				g.ProbeEnded(&m, false)
			}
			require.True(t, g.Paused())
		})
	})
	t.Run("a probe that does not end is followed by another", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			slow, next := breaker.Message{ID: "slow"}, breaker.Message{ID: "next"}
			g.probe(t, &slow)
			require.Equal(t, 42*time.Second, g.probe(t, &next), "the timeout, and twice the first wait")
			g.ProbeEnded(&slow, true)
			g.ProbeEnded(&next, true)
			require.False(t, g.Paused(), "the slow probe counts when it succeeds")
		})
	})
	t.Run("a failure of a new message starts the count again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			succeed := func() {
				var m breaker.Message
				g.probe(t, &m)
				g.ProbeEnded(&m, true)
			}
			succeed()
			old := breaker.Message{ID: "failed before"}
			g.probe(t, &old)
			g.Failed(&old, breaker.Failure{Err: errDown, Since: old.Started.Add(-time.Hour)})
			g.ProbeEnded(&old, false)
			fresh := breaker.Message{ID: "new"}
			require.Zero(t, g.probe(t, &fresh), "a bad message is no reason to wait")
			g.Failed(&fresh, breaker.Failure{Err: errDown, Since: time.Now()})
			g.ProbeEnded(&fresh, false)
			succeed()
			require.True(t, g.Paused())
			succeed()
			require.False(t, g.Paused())
		})
	})
	t.Run("nothing to probe with", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			in := g.Intake()
			<-in.Probe()
			g.BeginProbe()
			ctx, cancel := g.ProbeContext(context.Background())
			defer cancel()
			began := time.Now()
			<-ctx.Done()
			require.Equal(t, 4*time.Hour, time.Since(began).Round(time.Minute))
			g.EndPause(in)
			require.False(t, g.Paused())
		})
	})
}

// Rule 4: a pause spares a message until it has been failing for MaxPause.
func TestBreaker_sparesMessagesForMaxPause(t *testing.T) {
	for _, test := range []struct {
		name     string
		maxPause time.Duration
		age      time.Duration
		spared   bool
	}{
		{"young", 4 * time.Hour, time.Hour, true},
		{"too old", 4 * time.Hour, 4 * time.Hour, false},
		{"for ever", -1, 1000 * time.Hour, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t, func(c *breaker.Config) { c.MaxPause = test.maxPause })
				g.failAll(3)
				require.True(t, g.Paused())
				v := g.fail(test.age, last)
				require.Equal(t, test.spared, v.Spared)
				require.Equal(t, test.spared, v.Paused)
				if v.Spared {
					require.LessOrEqual(t, v.After, 10*30*time.Second, "ten times MaxProbe")
				}
			})
		})
	}
}

// An operator's hold is independent of the state, and nothing is probed meanwhile.
func TestBreaker_heldByAnOperator(t *testing.T) {
	t.Run("workers take nothing until the release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, func(c *breaker.Config) { c.Messages = -1 }) // also without a breaker
			in := g.Intake()
			g.Hold()
			g.Hold()
			require.Error(t, in.Context().Err())
			require.True(t, g.Paused())
			held := g.Intake()
			time.Sleep(time.Minute)
			g.Release()
			g.Release()
			<-held.Resumed()
			require.False(t, g.Paused())
			require.NoError(t, g.Intake().Context().Err())
			require.Equal(t, []breaker.Change{
				{From: breaker.Closed, To: breaker.Closed, Held: true},
				{From: breaker.Closed, To: breaker.Closed, After: time.Minute},
			}, g.changes)
		})
	})
	t.Run("an open breaker does not probe, and probes again after the release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			g.Hold()
			select {
			case <-g.Intake().Probe():
				t.Fatal("probed while it was held")
			case <-time.After(time.Hour):
			}
			g.Release()
			require.True(t, g.Paused())
			var m breaker.Message
			require.Equal(t, time.Second, g.probe(t, &m))
			g.ProbeEnded(&m, true)
			g.probe(t, &m)
			g.ProbeEnded(&m, true)
			require.False(t, g.Paused())
		})
	})
	t.Run("what was taken before may open and close the breaker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.Hold()
			g.failAll(3)
			require.Equal(t, []breaker.State{breaker.Closed, breaker.Open}, g.states())
			for range 2 {
				g.ProbeEnded(&breaker.Message{}, true)
			}
			require.Equal(t, []breaker.State{breaker.Closed, breaker.Open, breaker.Closed}, g.states())
			require.True(t, g.Paused(), "an operator's decision")
			g.Release()
			require.False(t, g.Paused())
		})
	})
	t.Run("a probe that runs at the release decides on the next one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			m := breaker.Message{ID: "probe"}
			g.probe(t, &m)
			g.Hold()
			g.Release()
			select {
			case <-g.Intake().Probe():
				t.Fatal("there are two probes")
			case <-time.After(10 * time.Second):
			}
			g.Failed(&m, breaker.Failure{Err: errDown, Since: time.Now()})
			g.ProbeEnded(&m, false)
			require.Equal(t, 2*time.Second, g.probe(t, &m))
		})
	})
	t.Run("a worker that waits for a message to probe with stops waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, nil)
			g.failAll(3)
			in := g.Intake()
			<-in.Probe()
			g.BeginProbe()
			ctx, cancel := g.ProbeContext(in.Context())
			defer cancel()
			g.Hold()
			require.Error(t, ctx.Err())
			g.EndPause(in)
			g.Release()
			require.True(t, g.Paused(), "nothing has succeeded")
		})
	})
}
