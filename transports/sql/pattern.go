package sql

import (
	"strings"

	"github.com/leatbus/leat/bus/driver"
)

// A pattern is matched by the database, in the statement that inserts: so no publisher works from a
// stale list of groups. LIKE knows no segments, but where text and pattern have the same number of
// dots no % can span one. So a pattern carries its number of segments, its depth, and is compared
// with a topic of that depth; a pattern that ends in > with the topic cut to the segments before it.

// stored is a pattern as a row of the subscriptions.
type stored struct {
	pattern string
	depth   int    // 0 for a plain topic, n for n segments, -(n+1) for n segments before >
	matches string // LIKE's or GLOB's pattern
}

func (d dialect) row(pattern string) stored {
	if !driver.IsPattern(pattern) {
		return stored{pattern: pattern}
	}
	segments := strings.Split(pattern, ".")
	depth := len(segments)
	if last := depth - 1; segments[last] == ">" {
		segments, depth = segments[:last], -(last + 1)
	}
	for i, s := range segments {
		if s == "*" {
			segments[i] = d.anyText
		} else {
			segments[i] = d.literal.Replace(s)
		}
	}
	return stored{pattern: pattern, depth: depth, matches: strings.Join(segments, ".")}
}

// cut is a topic cut to what patterns of one depth are compared with.
type cut struct {
	depth int
	text  string
}

func cuts(topic string) []cut {
	all := []cut{{-1, ""}}
	depth := 1
	for i := range len(topic) {
		if topic[i] == '.' {
			depth++
			all = append(all, cut{-depth, topic[:i]})
		}
	}
	return append(all, cut{depth, topic})
}
