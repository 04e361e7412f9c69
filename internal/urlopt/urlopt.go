// Package urlopt reads the options of a transport's URL: every option is declared, and a misspelt one
// is an error that names its nearest neighbour.
package urlopt

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are the query parameters of one URL. Each getter takes its parameter out; Err complains
// about what is left.
type Options struct {
	values url.Values
	known  []string
	errs   []error
}

// New reads the query of u.
func New(u *url.URL) *Options {
	values, err := url.ParseQuery(u.RawQuery)
	o := &Options{values: values}
	if err != nil {
		o.errs = append(o.errs, errors.New("the query can't be parsed; write options as ?name=value&name=value"))
	}
	return o
}

// RequireHost complains about a URL like amqp:guest@localhost, which names no host: without the slashes it
// is a text that nobody looks at.
func (o *Options) RequireHost(u *url.URL) {
	if u.Opaque != "" {
		o.errs = append(o.errs, fmt.Errorf("the URL has no // behind %s:; write %s://", u.Scheme, u.Scheme))
	}
}

// take returns the parameter's value and forgets it; ok is false where it is absent.
func (o *Options) take(name string) (value string, ok bool) {
	o.known = append(o.known, name)
	values, ok := o.values[name]
	delete(o.values, name)
	if len(values) > 1 {
		o.errs = append(o.errs, fmt.Errorf("option %s is given %d times", name, len(values)))
	}
	if !ok {
		return "", false
	}
	return values[0], true
}

func (o *Options) fail(name, value, want string) {
	o.errs = append(o.errs, fmt.Errorf("option %s=%q: it is %s", name, value, want))
}

// String is a free text.
func (o *Options) String(name, fallback string) string {
	if v, ok := o.take(name); ok {
		return v
	}
	return fallback
}

// Choice is one of some words.
func (o *Options) Choice(name, fallback string, choices ...string) string {
	v, ok := o.take(name)
	if !ok {
		return fallback
	}
	if !slices.Contains(choices, v) {
		o.fail(name, v, "one of "+strings.Join(choices, ", "))
		return fallback
	}
	return v
}

// Bool is true or false.
func (o *Options) Bool(name string, fallback bool) bool {
	v, ok := o.take(name)
	if !ok {
		return fallback
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		o.fail(name, v, "true or false")
	}
	return b
}

// Int is a whole number of at least least.
func (o *Options) Int(name string, fallback, least int) int {
	v, ok := o.take(name)
	if !ok {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least {
		o.fail(name, v, fmt.Sprintf("a whole number of at least %d", least))
		return fallback
	}
	return n
}

// Duration is a positive duration in Go's notation.
func (o *Options) Duration(name string, fallback time.Duration) time.Duration {
	v, ok := o.take(name)
	if !ok {
		return fallback
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		o.fail(name, v, "a positive duration such as 500ms, 30s or 5m")
		return fallback
	}
	return d
}

// Err is everything that was wrong: unreadable values, and parameters that no getter asked for.
func (o *Options) Err() error {
	errs := o.errs
	for _, name := range slices.Sorted(maps.Keys(o.values)) {
		errs = append(errs, o.unknown(name))
	}
	return errors.Join(errs...)
}

func (o *Options) unknown(name string) error {
	if len(o.known) == 0 {
		return fmt.Errorf("unknown option %q; there are no options", name)
	}
	slices.Sort(o.known)
	hint := ""
	if near := Nearest(name, o.known); near != "" {
		hint = fmt.Sprintf(" Did you mean %q?", near)
	}
	return fmt.Errorf("unknown option %q; known: %s.%s", name, strings.Join(o.known, ", "), hint)
}

// Nearest is the candidate that a misspelt word most likely means, "" where none is near. A word that was
// cut short, or went on too long, is nearer than any other.
func Nearest(word string, candidates []string) string {
	best, bestDistance := "", (len(word)+1)/2+1
	const always = 1 << 20 // more than any distance
	lower := strings.ToLower(word)
	for _, c := range candidates {
		name := strings.ToLower(c)
		d := distance(lower, name)
		if len(word) > 2 && (strings.HasPrefix(name, lower) || strings.HasPrefix(lower, name)) {
			d -= always
		}
		if d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
