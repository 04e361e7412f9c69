package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
)

var errBusy = errors.New("busy")

// spans returns the waits between the tries of a message whose handler fails with these errors in turn, the
// last of them for ever.
func spans(t *testing.T, errs []error, opts ...handlers.Option) (waits []time.Duration, dead bus.PoisonedMessage) {
	synctest.Test(t, func(t *testing.T) {
		n, last := 0, time.Now()
		w := newWorld(t, handlers.Raw("charge", []string{"order.>"}, func(context.Context, *message.Message) error {
			waits = append(waits, time.Since(last))
			last = time.Now()
			n++
			return errs[min(n, len(errs))-1]
		}, append(opts, handlers.Breaker(bus.NoBreaker()))...))
		w.raw("order.paid.v1", `{}`)
		w.idle()
		dead = w.poisoned("charge")
	})
	return waits[1:], dead
}

func exactly(delays ...time.Duration) bus.RetryPolicy {
	return bus.RetryPolicy{Delays: delays, Jitter: -1}
}

func TestRetry_perErrorClass(t *testing.T) {
	const ms, s, h = time.Millisecond, time.Second, time.Hour
	opts := []handlers.Option{
		handlers.Retry(exactly(ms, 2*ms)),
		handlers.PermanentOn(fs.ErrNotExist, fs.ErrPermission),
		handlers.RetryOn(errBusy, exactly(5*s, 6*s, 7*s)),
		handlers.RetryOn(errBusy, exactly(h)),
		handlers.RetryOnType[*fs.PathError](exactly(h, ms)),
		handlers.PermanentOnType[*bus.PanicError](),
	}
	busy, path := fmt.Errorf("charge: %w", errBusy), &fs.PathError{Op: "open", Path: "x", Err: io.EOF}
	for name, c := range map[string]struct {
		errs  []error
		waits []time.Duration
	}{
		"no rule matches":          {[]error{errBroken}, []time.Duration{ms, 2 * ms}},
		"errors.Is":                {[]error{busy}, []time.Duration{5 * s, 6 * s, 7 * s}}, // and the first rule of two
		"errors.As":                {[]error{path}, []time.Duration{h, ms}},
		"permanent":                {[]error{fmt.Errorf("read: %w", fs.ErrPermission)}, nil},
		"permanent goes first":     {[]error{&fs.PathError{Err: fs.ErrNotExist}}, nil},
		"a type is permanent":      {[]error{driver.NewPanicError("boom")}, nil},
		"the handler knows better": {[]error{bus.Permanent(busy)}, nil},
		"the handler's own delay":  {[]error{bus.RetryAfter(busy, 8*s), busy}, []time.Duration{8 * s, 6 * s, 7 * s}},
		"a shorter delay":          {[]error{bus.RetryAfter(busy, 3*s), busy}, []time.Duration{5 * s, 6 * s, 7 * s}},
		"a snooze":                 {[]error{bus.Snooze(h), busy}, []time.Duration{h, 5 * s, 6 * s, 7 * s}},
		"the second delivery":      {[]error{busy, path}, []time.Duration{5 * s, ms}},          // where the other policy has its second try
		"the third delivery":       {[]error{busy, busy, path}, []time.Duration{5 * s, 6 * s}}, // where the other has none left
		"from quick to slow":       {[]error{errBroken, busy}, []time.Duration{ms, 6 * s, 7 * s}},
		"from slow to quick":       {[]error{busy, errBroken}, []time.Duration{5 * s, 2 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			waits, dead := spans(t, c.errs, opts...)
			require.ElementsMatch(t, c.waits, waits) // nil is empty
			require.True(t, slices.Equal(c.waits, waits), "%v", waits)
			require.NotEmpty(t, dead.ID)
		})
	}
	require.Error(t, bus.RetryRule{}.Validate())
	require.Error(t, bus.RetryRule{Match: func(error) bool { return true }, Policy: &bus.RetryPolicy{Jitter: 2}}.Validate())
}

// A message may be delivered as often as the longest policy wants before it is taken for one that kills
// its process.
func TestRetry_ruleMayExceedThePolicy(t *testing.T) {
	hours := make([]time.Duration, 20)
	for i := range hours {
		hours[i] = time.Hour
	}
	waits, dead := spans(t, []error{errBusy}, handlers.Retry(bus.OneTry()), handlers.RetryOn(errBusy, exactly(hours...)))
	require.Equal(t, hours, waits)
	require.Equal(t, 21, dead.Fault.Tries)
	require.Equal(t, "busy", dead.Fault.Text)
}
