package driver

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of texts about errors that travel in headers, in bytes.
const (
	MaxErrorBytes = 1024
	MaxClassBytes = 256 // of a class of errors

	maxChainText = 512
	maxTextClass = 80 // a class of errors that is a text; it is a column of a table
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

// ErrorClass returns what people group failures by: the error's type as [ErrorType] returns it, or, if that says no more
// than that the error is a text, the text of the innermost error. A word of the text that has a digit in it, such as an
// id, is replaced by #, so that errors that differ only in their ids are of one class.
func ErrorClass(err error) string {
	t, text := errorType(err)
	if text == "" {
		return t
	}
	return foldIDs(OneLine(text, maxTextClass))
}

// ErrorType returns the Go type of the innermost error that is more than text, which leat's own wrappers and those of
// the packages errors and fmt are not. If there is none, it returns the innermost error's. A panic's type names its
// value's type.
func ErrorType(err error) string {
	t, _ := errorType(err)
	return t
}

// errorType also returns the text of the innermost error if all errors of the chain are nothing but text.
func errorType(err error) (name, text string) {
	name, plain := "nil", true
	for err != nil {
		if p, ok := err.(*PanicError); ok { //nolint:errorlint // this link of the chain, not any
			return fmt.Sprintf("panic(%T)", p.Value), ""
		}
		if onlyText := isText(err); plain || !onlyText {
			name, plain, text = fmt.Sprintf("%T", err), onlyText, ""
			if isStandard(pkgPath(err)) {
				text = errorText(err)
			}
		}
		next := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			next = joined.Unwrap()[0]
		}
		err = next
	}
	return name, text
}

// foldIDs replaces each word that has a digit in it by #. A word has letters, digits, hyphens and underscores.
func foldIDs(text string) string {
	var folded strings.Builder
	for rest := text; rest != ""; {
		end := strings.IndexFunc(rest, func(r rune) bool { return !isWord(r) })
		switch {
		case end < 0:
			end = len(rest)
		case end == 0:
			_, end = utf8.DecodeRuneInString(rest)
		}
		if word := rest[:end]; strings.ContainsFunc(word, unicode.IsDigit) {
			folded.WriteByte('#')
		} else {
			folded.WriteString(word)
		}
		rest = rest[end:]
	}
	return folded.String()
}

func isWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_' }

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
	pkg, driver := pkgPath(err), reflect.TypeFor[PublishError]().PkgPath()
	return isStandard(pkg) || pkg == driver || pkg == path.Dir(driver)
}

// isStandard reports whether a package's errors are nothing but text.
func isStandard(pkg string) bool { return pkg == "errors" || pkg == "fmt" }

// pkgPath returns the package of an error's type.
func pkgPath(err error) string {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}
