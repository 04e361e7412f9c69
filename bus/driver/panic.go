package driver

import (
	"fmt"
	"runtime"
	"strings"
)

// PanicError is the error of a panic in a handler. Its text is one line without the stack, because error texts are put into
// headers, whose size is limited.
type PanicError struct {
	Value   any
	callers []uintptr
}

// maxStackFrames bounds the stack in a PanicError.
const maxStackFrames = 64

// NewPanicError returns an error with a recovered value and the stack of its panic. It must be called in the deferred function
// that called recover.
func NewPanicError(recovered any) *PanicError {
	callers := make([]uintptr, maxStackFrames)
	return &PanicError{Value: recovered, callers: callers[:runtime.Callers(2, callers)]}
}

// Stack returns the stack of the panic, innermost call first: a line for the function and one for its file and line.
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

// Unwrap returns the panic's value if it is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
