// Package urlopt reads the options of a transport's URL. Every option is declared, and the error of an unknown one names the most
// similar option.
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

// Options has the query parameters of one URL. Each getter removes its parameter. Err returns an error if some are left.
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

// RequireHost records an error if the URL is like amqp:guest@localhost or amqp:/vhost: without the two slashes it has no host.
func (o *Options) RequireHost(u *url.URL) {
	if u.Opaque != "" || u.OmitHost {
		o.errs = append(o.errs, fmt.Errorf("the URL has no // behind %s:; write %s://", u.Scheme, u.Scheme))
	}
}

// take returns the parameter's value and removes it. ok is false if it is absent.
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

// String returns a parameter that may be any text.
func (o *Options) String(name, fallback string) string {
	if v, ok := o.take(name); ok {
		return v
	}
	return fallback
}

// Choice returns a parameter that must be one of some words.
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

// StrictRoutes returns whether unroutable=error: every transport has this parameter for a publish that reaches no group.
func (o *Options) StrictRoutes() bool {
	return o.Choice("unroutable", "report", "report", "error") == "error"
}

// Bool returns a parameter that must be true or false.
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

// Int returns a parameter that must be an integer of at least least.
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

// Duration returns a parameter that must be a positive duration in Go's notation.
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

// Err returns the errors of all invalid values, and of parameters that no getter has removed.
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

// Nearest returns the candidate that a misspelt word most likely stands for, "" if none is similar. A candidate that begins with
// the word, or with which the word begins, is preferred.
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

// distance returns the Levenshtein distance of two words.
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
