package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

type declined struct{ code int }

func (e *declined) Error() string { return fmt.Sprintf("declined: %d", e.code) }

type wrapping struct{ cause error }

func (e *wrapping) Error() string { return "wrapping: " + e.cause.Error() }
func (e *wrapping) Unwrap() error { return e.cause }

func TestErrors_wrappersUnwrap(t *testing.T) {
	for name, c := range map[string]struct {
		wrap func(error) error
		is   func(error) bool
	}{
		"permanent":   {bus.Permanent, bus.IsPermanent},
		"discard":     {bus.Discard, bus.IsDiscard},
		"retry after": {func(err error) error { return bus.RetryAfter(err, time.Minute) }, func(err error) bool { d, ok := bus.RetryDelay(err); return ok && d == time.Minute }},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.wrap(nil), "of nil is nil")
			cause := &declined{51}
			for _, err := range []error{
				c.wrap(cause),
				fmt.Errorf("charge: %w", c.wrap(cause)),
				errors.Join(io.EOF, c.wrap(cause)),
				c.wrap(fmt.Errorf("charge: %w", cause)),
			} {
				require.True(t, c.is(err), "%v", err)
				require.ErrorIs(t, err, cause)
				var as *declined
				require.ErrorAs(t, err, &as)
				require.Equal(t, 51, as.code)
				require.Contains(t, err.Error(), "declined: 51")
			}
			require.False(t, c.is(cause))
			require.False(t, c.is(nil))
		})
	}
}

func TestErrors_wrappersDiffer(t *testing.T) {
	permanent, discard, after, snooze := bus.Permanent(errBroken), bus.Discard(errBroken), bus.RetryAfter(errBroken, 1), bus.Snooze(1)
	for _, err := range []error{discard, after, snooze} {
		require.False(t, bus.IsPermanent(err))
	}
	for _, err := range []error{permanent, after, snooze} {
		require.False(t, bus.IsDiscard(err))
	}
	for _, err := range []error{permanent, discard, snooze} {
		_, ok := bus.RetryDelay(err)
		require.False(t, ok)
	}
	for _, err := range []error{permanent, discard, after} {
		_, ok := errors.AsType[*bus.Redelivery](err)
		require.False(t, ok)
	}
}

func TestSnooze_isNotCounted(t *testing.T) {
	r, ok := errors.AsType[*bus.Redelivery](fmt.Errorf("not now: %w", bus.Snooze(time.Minute)))
	require.True(t, ok)
	require.Equal(t, &bus.Redelivery{After: time.Minute, Uncounted: true}, r)
	require.Equal(t, "redeliver in 1m0s", r.Error())
	require.NoError(t, errors.Unwrap(r))

	failed := &bus.Redelivery{After: time.Second, Err: errBroken}
	require.ErrorIs(t, failed, errBroken)
	require.Equal(t, "redeliver in 1s: the handler is broken", failed.Error())
}

func TestUnroutableError(t *testing.T) {
	err := fmt.Errorf("publish: %w", &bus.UnroutableError{Topics: []string{"a.v1", "b.v1", "c.v1", "d.v1"}})
	require.ErrorIs(t, err, bus.ErrUnroutable)
	require.NotErrorIs(t, err, bus.ErrClosed)
	require.ErrorContains(t, err, "4 published to a.v1, b.v1, c.v1;")
}

func TestPanicError_isOneShortLine(t *testing.T) {
	t.Run("its stack stands apart", func(t *testing.T) {
		err := driver.NewPanicError("boom\n\tgoroutine 1 [running]")
		require.EqualError(t, err, "panic: boom goroutine 1 [running]")
		require.Contains(t, err.Stack(), "TestPanicError_isOneShortLine")
	})
	t.Run("its value, where that is an error, is in the chain", func(t *testing.T) {
		require.ErrorIs(t, driver.NewPanicError(fmt.Errorf("index: %w", io.EOF)), io.EOF)
		require.NoError(t, errors.Unwrap(driver.NewPanicError("text")))
	})
	t.Run("however large and broken the value is", func(t *testing.T) {
		for name, value := range map[string]any{
			"640 KB of invalid UTF-8":  strings.Repeat("\xff\xfe", 320_000),
			"640 KB of newlines":       strings.Repeat("\n", 640_000),
			"640 KB of wide runes":     strings.Repeat("€", 213_000),
			"an error that is too big": errors.New(strings.Repeat("x", 640_000)),
			"control characters":       "\x00\x1b[31m\r\n\u0085\u2028red",
			"a stringer that panics":   (*declined)(nil),
		} {
			text := driver.NewPanicError(value).Error()
			require.LessOrEqual(t, len(text), 1024, name)
			require.True(t, utf8.ValidString(text), name)
			require.NotRegexp(t, `[\x00-\x1f\x7f-\x{9f}\x{2028}\x{2029}]`, text, name)
			require.True(t, strings.HasPrefix(text, "panic:"), name)
		}
	})
}

func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"", 16, ""},
		{" \t\n ", 16, ""},
		{"plain", 16, "plain"},
		{" a\r\n\tb\x00c ", 16, "a b c"},
		{"exactly sixteen.", 16, "exactly sixteen."},
		{"more than sixteen", 16, "more than six…"},
		{"größer und größer", 12, "größer …"},
		{"€€€€€€", 10, "€€…"},
		{"a\xffb", 16, "a�b"},
		{"a" + strings.Repeat(" ", 100), 16, "a…"},
	} {
		got := driver.OneLine(c.text, c.limit)
		require.Equal(t, c.want, got, "%q at %d", c.text, c.limit)
		require.LessOrEqual(t, len(got), c.limit)
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb", 10)
	f.Add("\xff\xff\xff\xff", 4)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		if limit < len("…") || limit > 1<<20 {
			t.Skip()
		}
		line := driver.OneLine(text, limit)
		require.LessOrEqual(t, len(line), limit)
		require.True(t, utf8.ValidString(line))
		require.NotContains(t, line, "\n")
		require.Equal(t, strings.TrimSpace(line), line)
	})
}

func TestErrorClass(t *testing.T) {
	cause := &declined{51}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"nil":                               {nil, "nil"},
		"a plain error":                     {cause, "*bus_test.declined"},
		"wrapped by fmt":                    {fmt.Errorf("charge: %w", cause), "*bus_test.declined"},
		"wrapped by leat":                   {bus.Permanent(bus.RetryAfter(cause, 1)), "*bus_test.declined"},
		"given back":                        {&bus.Redelivery{Err: cause}, "*bus_test.declined"},
		"joined, the first counts":          {errors.Join(cause, io.EOF), "*bus_test.declined"},
		"an own type around a standard one": {&wrapping{io.EOF}, "*bus_test.wrapping"},
		"an own type around an own type":    {&wrapping{cause}, "*bus_test.declined"},
		"only text":                         {fmt.Errorf("a: %w", errors.New("b")), "b"},
		"only text, marked":                 {bus.Permanent(errors.New("b")), "b"},
		"ids are folded":                    {errors.New("order o-17 of 9f1c: out of stock in Zürich (v2.x)"), "order # of #: out of stock in Zürich (#.x)"},
		"a long text is cut":                {errors.New(strings.Repeat("x", 1000)), strings.Repeat("x", 77) + "…"},
		"lines and controls":                {errors.New("a\n\x1b[31mb"), "a [#"},
		"a standard type says more":         {fmt.Errorf("decode: %w", &json.SyntaxError{}), "*json.SyntaxError"},
		"a timeout":                         {fmt.Errorf("a: %w", context.DeadlineExceeded), "context.deadlineExceededError"},
		"a panic names its value's type":    {driver.NewPanicError(42), "panic(int)"},
		"a panic with an error":             {fmt.Errorf("try: %w", driver.NewPanicError(cause)), "panic(*bus_test.declined)"},
	} {
		require.Equal(t, c.want, driver.ErrorClass(c.err), name)
	}
}

func TestSnooze_ofZeroDoesNotStarveTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		snoozes, before := 0, -1
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error {
			switch {
			case driver.MessageID(msg) == "other":
				before = snoozes
			case snoozes < 1000:
				snoozes++
				return bus.Snooze(0)
			}
			return nil
		}, concurrency(1))
		publish(t, b, "snoozer", "other")
		began := time.Now()
		run(t, b)
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, 1, before, "the other message comes after one snooze")
		require.Equal(t, 100*time.Second, time.Since(began))
	})
}
