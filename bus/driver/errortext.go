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
	MaxClassBytes = 256 // an error class

	maxChainText = 512
	maxTextClass = 80 // an error class made of a text; it is shown in a table's column
	maxLinkText  = 64 // the text of one error in a chain
)

// OneLine replaces every run of white space and control characters by one space and every invalid UTF-8 sequence by U+FFFD,
// and truncates the text to limit bytes, so that it fits a header and a log line. It may be called concurrently.
func OneLine(text string, limit int) string {
	truncated := len(text) > 4*limit // don't process what is certainly truncated
	if truncated {
		text = text[:4*limit]
	}
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "�"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(text) <= limit && !truncated {
		return text
	}
	text = text[:min(len(text), limit-len("…"))]
	return strings.ToValidUTF8(text, "") + "…"
}

// errorText returns the text of an error. Unlike the method Error it does not panic for a nil pointer in the interface.
func errorText(err error) string { return fmt.Sprint(err) }

// ErrorClass returns a class by which failures can be grouped: the error's type as [ErrorType] returns it or, if all errors of
// the chain are plain text such as those of errors.New, the text of the innermost error. Each word of the text that contains a
// digit is replaced by #, so that errors that differ only in ids have the same class.
func ErrorClass(err error) string {
	t, text := errorType(err)
	if text == "" {
		return t
	}
	return foldIDs(OneLine(text, maxTextClass))
}

// ErrorType returns the Go type of the innermost error that is more than plain text: errors of leat and of the packages errors
// and fmt are plain text. If there is none, it returns the type of the innermost error. For a panic it names the type of the
// panic's value.
func ErrorType(err error) string {
	t, _ := errorType(err)
	return t
}

// errorType returns what ErrorType does, and the text of the innermost error if all errors of the chain are plain text.
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

// foldIDs replaces each word that contains a digit by #. A word consists of letters, digits, hyphens and underscores.
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

// ErrorChain lists what errors.As and errors.Is find in err, outermost first and joined by " > ": the type of each error that
// is more than plain text, and the quoted text of a plain-text error that wraps none, such as io.EOF. It leaves leat's own
// wrappers out. The result is one line of at most 512 bytes.
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

// isText reports whether an error is plain text: its type has no more information than its text.
func isText(err error) bool {
	pkg, driver := pkgPath(err), reflect.TypeFor[PublishError]().PkgPath()
	return isStandard(pkg) || pkg == driver || pkg == path.Dir(driver)
}

// isStandard reports whether all errors of a package are plain text.
func isStandard(pkg string) bool { return pkg == "errors" || pkg == "fmt" }

// pkgPath returns the package of an error's type.
func pkgPath(err error) string {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath()
}
