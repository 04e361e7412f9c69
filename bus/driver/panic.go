package driver

import (
	"fmt"
	"runtime"
	"strings"
)

// PanicError is a handler's panic as an error. Its text is one line; the stack stands apart,
// because error texts travel in headers, and headers have limits.
type PanicError struct {
	Value   any
	callers []uintptr
}

// maxStackFrames bounds what a PanicError keeps of its stack.
const maxStackFrames = 64

// NewPanicError keeps a recovered value with the stack of the panic. It must be called in the deferred
// function that recovered.
func NewPanicError(recovered any) *PanicError {
	callers := make([]uintptr, maxStackFrames)
	return &PanicError{Value: recovered, callers: callers[:runtime.Callers(2, callers)]}
}

// Stack returns the stack of the panic, innermost call first, a line for the function and one for its place.
func (e *PanicError) Stack() string {
	var b strings.Builder
	frames := runtime.CallersFrames(e.callers)
	for more := len(e.callers) > 0; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		fmt.Fprintf(&b, "%s\n\t%s:%d\n", frame.Function, frame.File, frame.Line)
	}
	return b.String()
}

func (e *PanicError) Error() string { return OneLine(fmt.Sprintf("panic: %v", e.Value), MaxErrorBytes) }

// Unwrap returns the panic's value where that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
