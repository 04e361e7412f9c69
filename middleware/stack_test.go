package middleware_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware"
)

// step returns a step that says that it was there.
func step(name string) middleware.Step {
	return middleware.Use(name, func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msg.Metadata["path"] += name + " "
			return next(msg)
		}
	})
}

// path returns the steps that a message goes through.
func path(t *testing.T, s middleware.Stack) string {
	t.Helper()
	fn, err := s.Wrap(bus.Handler{Name: "ledger"}, func(*message.Message) ([]*message.Message, error) { return nil, nil })
	require.NoError(t, err)
	msg := message.NewMessage("a", nil)
	_, err = fn(msg)
	require.NoError(t, err)
	return strings.TrimSpace(msg.Metadata["path"])
}

func wrapError(s middleware.Stack) error {
	_, err := s.Wrap(bus.Handler{Name: "ledger"}, func(*message.Message) ([]*message.Message, error) { return nil, nil })
	return err
}

func TestStack_editedByName(t *testing.T) {
	abc := middleware.NewStack(step("a"), step("b"), step("c"))
	for want, s := range map[string]middleware.Stack{
		"a b c":     abc,
		"a x b c":   abc.Before("b", step("x")),
		"x y a b c": abc.Before("a", step("x"), step("y")),
		"a b x c":   abc.After("b", step("x")),
		"a b c x y": abc.After("c", step("x"), step("y")),
		"a x c":     abc.Replace("b", step("x")),
		"b":         abc.Without("a", "c"),
		"":          abc.Without("c", "b", "a"),
		"c x":       abc.Without("a").After("c", step("x")).Without("b"),
	} {
		require.Equal(t, want, path(t, s))
		require.Equal(t, want, strings.Join(s.Names(), " "))
	}
	require.Empty(t, path(t, middleware.Stack{}), "the zero stack is empty")
}

func TestStack_editingCopies(t *testing.T) {
	steps := []middleware.Step{step("a"), step("b"), step("c")}
	abc := middleware.NewStack(steps...)
	steps[0] = step("changed")
	first := abc.Before("b", step("x"))
	second := abc.Before("b", step("y"))
	_ = abc.Replace("a", step("z"))
	_ = abc.Without("a", "b", "c")
	names := abc.Names()
	names[0] = "changed"
	require.Equal(t, "a b c", path(t, abc))
	require.Equal(t, "a x b c", path(t, first))
	require.Equal(t, "a y b c", path(t, second))
	require.NoError(t, wrapError(abc))
}

func TestStack_wrapReturnsEditErrors(t *testing.T) {
	ab := middleware.NewStack(step("a"), step("b"))
	for name, c := range map[string]struct {
		stack middleware.Stack
		want  string
	}{
		"before a step that is not there": {ab.Before("retyr", step("x")), `the stack has no step "retyr"; it has a, b`},
		"after a step that is not there":  {ab.After("x", step("y")), `no step "x"`},
		"replacing what is not there":     {ab.Replace("x", step("y")), `no step "x"`},
		"taking out what is not there":    {ab.Without("a", "a"), `no step "a"; it has b`},
		"and going on":                    {ab.Without("x").Without("a"), `no step "x"`},
		"a step twice":                    {ab.After("b", step("a")), `there are two steps named "a"`},
		"a step without a name":           {ab.After("b", step("")), "step 3 has no name or no middleware"},
		"a step without a middleware":     {middleware.NewStack(middleware.Step{Name: "x"}), "step 1 has no name or no middleware"},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, wrapError(c.stack), c.want)
			b := newBus(t, nil, c.stack)
			err := b.Handle(rawHandler("ledger", nil))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, `bus: handler "ledger": middleware: `)
		})
	}
}

func TestStep_perHandler(t *testing.T) {
	var asked []string
	s := middleware.NewStack(
		middleware.Step{Name: "adapts", Make: func(h bus.Handler) (message.HandlerMiddleware, error) {
			asked = append(asked, h.Name)
			return nil, nil
		}},
		step("stays"),
	)
	require.Equal(t, "stays", path(t, s))
	require.Equal(t, []string{"ledger"}, asked, "once, at start")

	refuses := s.After("stays", middleware.Step{Name: "refuses", Make: func(bus.Handler) (message.HandlerMiddleware, error) {
		return nil, errHandler
	}})
	require.ErrorIs(t, wrapError(refuses), errHandler)
	require.ErrorContains(t, wrapError(refuses), `step "refuses"`)
}

func TestStandard_hasEveryStepInOrder(t *testing.T) {
	want := []string{"observe", "poison", "dedup", "retry", "recover", "timeout", "version"}
	require.Equal(t, want, middleware.Standard(middleware.Config{}).Names())
	require.NoError(t, wrapError(middleware.Standard(middleware.Config{})))
}

// TestStack_rejectsEveryWrongOrder tries each pair of them the other way round.
func TestStack_rejectsEveryWrongOrder(t *testing.T) {
	reasons := map[string]string{
		"observe": "observe counts final outcomes",
		"poison":  "would poison on the first failure",
		"dedup":   "would take a retry for a duplicate",
		"retry":   "retry must see panics, timeouts and undecodable messages as errors",
		"recover": "recover must stand around everything that can panic",
		"timeout": "timeout bounds the handler",
	}
	names := middleware.Standard(middleware.Config{}).Names()
	for i, outer := range names {
		for _, inner := range names[i+1:] {
			wrong := middleware.NewStack(step("mine"), step(inner), step("yours"), step(outer))
			err := wrapError(wrong)
			require.ErrorContains(t, err, `step "`+outer+`" is inside "`+inner+`" and must be outside of it: `)
			require.ErrorContains(t, err, reasons[outer])
			require.NoError(t, wrapError(middleware.NewStack(step("mine"), step(outer), step("yours"), step(inner))))
		}
	}

	for i := range names {
		for j := i + 1; j < len(names); j++ {
			swapped := slices.Clone(names)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			steps := make([]middleware.Step, len(swapped))
			for k, name := range swapped {
				steps[k] = step(name)
			}
			require.Error(t, wrapError(middleware.NewStack(steps...)), "%v", swapped)
		}
	}
}

func TestStandard_adaptsToTheHandler(t *testing.T) {
	wrong := bus.RetryPolicy{Jitter: 3}
	_, err := middleware.Standard(middleware.Config{}).Wrap(bus.Handler{Retry: &wrong}, nil)
	require.ErrorContains(t, err, `step "retry": bus: retry policy`)
	_, err = middleware.Standard(middleware.Config{Retry: wrong}).Wrap(bus.Handler{}, nil)
	require.ErrorContains(t, err, `step "retry": bus: retry policy`)
	up := middleware.Upcast(func(placedV2) placedV1 { return placedV1{} })
	_, err = middleware.Standard(middleware.Config{Upcasters: []middleware.Upcaster{up}}).Wrap(bus.Handler{Types: []bus.Type{placed(1)}}, nil)
	require.ErrorContains(t, err, `step "version": upcaster from order.placed.v2 to order.placed.v1`)
	require.NotErrorIs(t, err, errors.ErrUnsupported)
}
