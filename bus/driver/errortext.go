package driver

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"strconv"
	"strings"
	"unicode"
)

// Limits of texts about errors that travel in headers, in bytes.
const (
	MaxErrorBytes = 1024
	MaxClassBytes = 256 // of the name of a type

	maxChainText = 512
	maxLinkText  = 64 // the text of an error in a chain
)

// OneLine folds every run of white space and control characters to one space, repairs UTF-8 and
// cuts the text at limit bytes, so that it fits a header and a log line.
func OneLine(text string, limit int) string {
	cut := len(text) > 4*limit // fold no more than could be kept
	if cut {
		text = text[:4*limit]
	}
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "�"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(text) <= limit && !cut {
		return text
	}
	text = text[:min(len(text), limit-len("…"))]
	return strings.ToValidUTF8(text, "") + "…"
}

// errorText returns an error's text. Unlike its method Error it does not panic for a nil pointer that was returned
// as an error.
func errorText(err error) string { return fmt.Sprint(err) }

// ErrorClass returns what people group failures by: the Go type of the innermost error that is more than
// text, which leat's own wrappers and those of the packages errors and fmt are not. Where there is
// none, it is the innermost error's. A panic's class names its value's type.
func ErrorClass(err error) string {
	class, plain := "nil", true
	for err != nil {
		if p, ok := err.(*PanicError); ok { //nolint:errorlint // this link of the chain, not any
			return fmt.Sprintf("panic(%T)", p.Value)
		}
		if text := isText(err); plain || !text {
			class, plain = fmt.Sprintf("%T", err), text
		}
		next := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			next = joined.Unwrap()[0]
		}
		err = next
	}
	return class
}

// ErrorChain names what errors.As and errors.Is find in err, outermost first and joined by " > ": the
// type of each error that is more than text, and the text, in quotes, of an error that is nothing else
// and wraps none, such as io.EOF. leat's own wrappers are left out. It is one line of at most 512
// bytes.
func ErrorChain(err error) string {
	var links []string
	for err != nil && len(links) < maxChainText/4 {
		next := errors.Unwrap(err)
		joined, _ := err.(interface{ Unwrap() []error })
		switch {
		case !isText(err):
			links = append(links, OneLine(fmt.Sprintf("%T", err), MaxClassBytes))
		case isPanic(err):
			links = append(links, OneLine(ErrorClass(err), MaxClassBytes))
		case next == nil && joined == nil:
			links = append(links, strconv.Quote(OneLine(errorText(err), maxLinkText)))
		}
		if joined != nil && len(joined.Unwrap()) > 0 {
			next = joined.Unwrap()[0]
		}
		err = next
	}
	return OneLine(strings.Join(links, " > "), maxChainText)
}

// isPanic reports whether err itself is a panic.
func isPanic(err error) bool {
	_, ok := err.(*PanicError) //nolint:errorlint // this link of the chain, not any
	return ok
}

// isText reports whether an error's type says nothing that its text does not.
func isText(err error) bool {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	driver := reflect.TypeFor[PublishError]().PkgPath()
	switch t.PkgPath() {
	case "errors", "fmt", driver, path.Dir(driver):
		return true
	default:
		return false
	}
}
