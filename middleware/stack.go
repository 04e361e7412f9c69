package middleware

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// The names of the standard steps.
const (
	StepObserve = "observe"
	StepPoison  = "poison"
	StepDedup   = "dedup"
	StepRetry   = "retry"
	StepRecover = "recover"
	StepTimeout = "timeout"
	StepVersion = "version"
)

// standardOrder returns the standard steps, outermost first. The reason of each step says what breaks if an inner step is
// outside of it.
func standardOrder() []struct{ step, reason string } {
	return []struct{ step, reason string }{
		{StepObserve, "observe counts final outcomes, and would see what the steps around it still change"},
		{StepPoison, "poison takes what every try has failed, and would poison on the first failure"},
		{StepDedup, "dedup asks its store once per delivery, and would take a retry for a duplicate"},
		{StepRetry, "retry must see panics, timeouts and undecodable messages as errors"},
		{StepRecover, "recover must stand around everything that can panic"},
		{StepTimeout, "timeout bounds the handler, and the lifting of old versions with it"},
		{StepVersion, ""},
	}
}

// Step is a named middleware. Make is called once per handler, at start. It returns the middleware for that handler, nil if the
// handler needs none, or an error if the handler does not fit.
type Step struct {
	Name string
	Make func(bus.Handler) (message.HandlerMiddleware, error)
	// Settings returns how the step works for a handler, for people; nil if it has none.
	Settings func(bus.Handler) []string
}

// Use returns a step with a Watermill middleware.
func Use(name string, m message.HandlerMiddleware) Step {
	return Step{Name: name, Make: func(bus.Handler) (message.HandlerMiddleware, error) { return m, nil }}
}

// A Stack has the steps of the consume path, outermost first. It is a value: Before, After, Replace and Without return a changed
// copy. Wrap, which is called at start, returns the errors of these changes.
type Stack struct {
	steps []Step
	err   error
}

var _ bus.Stack = Stack{}

// NewStack returns a stack of steps, outermost first.
func NewStack(steps ...Step) Stack { return Stack{steps: slices.Clone(steps)} }

// Names returns the names of the steps, outermost first.
func (s Stack) Names() []string {
	names := make([]string, len(s.steps))
	for i, step := range s.steps {
		names[i] = step.Name
	}
	return names
}

// Before returns a stack with steps added directly outside of the step with that name.
func (s Stack) Before(name string, steps ...Step) Stack {
	return s.splice(name, func(i int) (int, int) { return i, i }, steps)
}

// After returns a stack with steps added directly inside of the step with that name.
func (s Stack) After(name string, steps ...Step) Stack {
	return s.splice(name, func(i int) (int, int) { return i + 1, i + 1 }, steps)
}

// Replace returns a stack in which a step replaces the one with that name.
func (s Stack) Replace(name string, step Step) Stack {
	return s.splice(name, func(i int) (int, int) { return i, i + 1 }, []Step{step})
}

// Without returns a stack without the steps with these names.
func (s Stack) Without(names ...string) Stack {
	for _, name := range names {
		s = s.splice(name, func(i int) (int, int) { return i, i + 1 }, nil)
	}
	return s
}

func (s Stack) splice(name string, span func(int) (from, to int), steps []Step) Stack {
	i := slices.Index(s.Names(), name)
	if i < 0 {
		s.err = errors.Join(s.err, fmt.Errorf("the stack has no step %q; it has %s", name, strings.Join(s.Names(), ", ")))
		return s
	}
	from, to := span(i)
	s.steps = slices.Replace(slices.Clone(s.steps), from, to, steps...)
	return s
}

// Wrap returns the handler's function wrapped in the steps. It returns an error if the order of the steps is wrong, a name is
// missing or used twice, or a step does not fit the handler.
func (s Stack) Wrap(h bus.Handler, next message.HandlerFunc) (message.HandlerFunc, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("middleware: %w", err)
	}
	for _, step := range slices.Backward(s.steps) {
		m, err := step.Make(h)
		if err != nil {
			return nil, fmt.Errorf("middleware: step %q: %w", step.Name, err)
		}
		if m != nil {
			next = m(next)
		}
	}
	return next, nil
}

// check returns an error for steps without a name, for names that are used twice, and for standard steps in an order that loses
// or repeats messages.
func (s Stack) check() error {
	if s.err != nil {
		return s.err
	}
	names := s.Names()
	for i, name := range names {
		if name == "" || s.steps[i].Make == nil {
			return fmt.Errorf("step %d has no name or no middleware", i+1)
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("there are two steps named %q", name)
		}
	}
	order := standardOrder()
	for i, outer := range order {
		for _, inner := range order[i+1:] {
			outerAt, innerAt := slices.Index(names, outer.step), slices.Index(names, inner.step)
			if outerAt >= 0 && innerAt >= 0 && outerAt > innerAt {
				return fmt.Errorf("step %q is inside %q and must be outside of it: %s", outer.step, inner.step, outer.reason)
			}
		}
	}
	return nil
}
