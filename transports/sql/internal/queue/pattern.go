package queue

import (
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// The database matches patterns, in the statement that inserts, so no publisher uses a stale list of
// groups. LIKE has no segments, but if text and pattern have the same number of dots, no % matches one.
// So each pattern is stored with its number of segments, the depth, and compared with topics of that
// depth. A pattern that ends in > is compared with the topic's first segments, as many as are in front of the >.

// A stored is a row of {subscriptions} for a pattern.
type stored struct {
	pattern string
	depth   int    // 0 for a plain topic, n for n segments, -(n+1) for n segments before >
	matches string // the pattern for LIKE or GLOB
}

// patternSyntax is the syntax of a database's patterns.
type patternSyntax struct {
	like    string   // compares a text with a pattern; %s is the pattern
	anyText string   // matches any text
	escapes []string // pairs that escape a text for a pattern
}

func patternOf(dialect sqlconfig.Dialect) patternSyntax {
	if dialect == sqlconfig.SQLite { // its LIKE ignores case
		return patternSyntax{"GLOB %s", "*", []string{"[", "[[]", "*", "[*]", "?", "[?]"}}
	}
	return patternSyntax{"LIKE %s ESCAPE '|'", "%", []string{"|", "||", "%", "|%", "_", "|_"}}
}

func storedPattern(dialect sqlconfig.Dialect, pattern string) stored {
	syntax := patternOf(dialect)
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
			segments[i] = syntax.anyText
		} else {
			segments[i] = strings.NewReplacer(syntax.escapes...).Replace(s)
		}
	}
	return stored{pattern: pattern, depth: depth, matches: strings.Join(segments, ".")}
}

// A topicPrefix is the part of a topic that patterns of one depth are compared with.
type topicPrefix struct {
	depth int
	text  string
}

func topicPrefixes(topic string) []topicPrefix {
	all := []topicPrefix{{-1, ""}}
	depth := 1
	for i := range len(topic) {
		if topic[i] == '.' {
			depth++
			all = append(all, topicPrefix{-depth, topic[:i]})
		}
	}
	return append(all, topicPrefix{depth, topic})
}
