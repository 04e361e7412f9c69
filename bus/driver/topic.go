package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// MaxTopicBytes is the longest topic: an AMQP 0-9-1 routing key, which is a short string, can't be longer.
const MaxTopicBytes = 255

// maxCachedTopics bounds the cache of a TopicTable: foreign producers choose topics.
const maxCachedTopics = 4096

// ValidateTopic returns an error if a message can't be published to the topic. A topic consists of segments that are separated
// by dots. No segment is empty. It is valid UTF-8 without white space, control characters and the wildcards * > #, and no longer
// than [MaxTopicBytes].
func ValidateTopic(topic string) error {
	if plainTopic(topic) {
		return nil
	}
	if err := validateSegments(topic); err != nil {
		return err
	}
	if i := strings.IndexAny(topic, "*>#"); i >= 0 {
		return fmt.Errorf("topic %q has the wildcard %q; wildcards belong in a subscription", topic, topic[i:i+1])
	}
	return nil
}

// plainTopic reports whether the topic is valid and its segments consist of ASCII letters, digits, hyphens and underscores, as
// in nearly all topics. It is fast enough for every publish.
func plainTopic(topic string) bool {
	if topic == "" || len(topic) > MaxTopicBytes {
		return false
	}
	last := byte('.')
	for i := range len(topic) {
		c := topic[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c == '-', c == '_':
		case c != '.' || last == '.':
			return false
		}
		last = c
	}
	return last != '.'
}

// ValidatePattern returns an error if a group can't subscribe to the pattern. A pattern is a topic in which a segment may be *,
// which matches one segment, and the last may be >, which matches one or more.
func ValidatePattern(pattern string) error {
	if err := validateSegments(pattern); err != nil {
		return err
	}
	segments := strings.Split(pattern, ".")
	for i, segment := range segments {
		switch {
		case segment == "*", segment == ">" && i == len(segments)-1:
		case segment == ">":
			return fmt.Errorf("pattern %q has > before its end; it stands for the whole rest of a topic", pattern)
		case strings.ContainsAny(segment, "*>#"):
			return fmt.Errorf("pattern %q mixes a wildcard into the segment %q; a wildcard (* or >) is a segment of its own", pattern, segment)
		}
	}
	return nil
}

func validateSegments(s string) error {
	switch {
	case s == "":
		return errors.New("topic is empty")
	case len(s) > MaxTopicBytes:
		return fmt.Errorf("topic %q… has %d bytes; at most %d fit", s[:32], len(s), MaxTopicBytes)
	case !utf8.ValidString(s):
		return fmt.Errorf("topic %q is not valid UTF-8", s)
	case s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, ".."):
		return fmt.Errorf("topic %q has an empty segment", s)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }); i >= 0 {
		return fmt.Errorf("topic %q has white space or a control character", s)
	}
	return nil
}

// IsPattern reports whether s has a wildcard.
func IsPattern(s string) bool { return strings.ContainsAny(s, "*>") }

// PatternsOverlap reports whether a topic can match both patterns.
func PatternsOverlap(a, b string) bool {
	if a == ">" || b == ">" {
		return true
	}
	oneA, restA, moreA := strings.Cut(a, ".")
	oneB, restB, moreB := strings.Cut(b, ".")
	if oneA != oneB && oneA != "*" && oneB != "*" {
		return false
	}
	if !moreA || !moreB {
		return moreA == moreB
	}
	return PatternsOverlap(restA, restB)
}

// MatchTopic reports whether the pattern matches the topic.
func MatchTopic(pattern, topic string) bool {
	for {
		if pattern == ">" {
			return topic != ""
		}
		want, restPattern, morePattern := strings.Cut(pattern, ".")
		have, restTopic, moreTopic := strings.Cut(topic, ".")
		if want != have && want != "*" {
			return false
		}
		if !morePattern || !moreTopic {
			return morePattern == moreTopic
		}
		pattern, topic = restPattern, restTopic
	}
}

// A TopicTable finds the values whose patterns match a topic. The zero table is empty and ready to use. All methods may be
// called concurrently.
type TopicTable[T comparable] struct {
	mu    sync.RWMutex
	rows  []topicRow[T]
	cache map[string][]T
}

type topicRow[T comparable] struct {
	pattern string
	value   T
}

// Add adds value under the patterns.
func (t *TopicTable[T]) Add(value T, patterns ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range patterns {
		t.rows = append(t.rows, topicRow[T]{p, value})
	}
	t.cache = nil
}

// Set replaces the patterns of value in one step: a topic that matches the old and the new patterns always finds the value.
func (t *TopicTable[T]) Set(value T, patterns ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = slices.DeleteFunc(t.rows, func(r topicRow[T]) bool { return r.value == value })
	for _, p := range patterns {
		t.rows = append(t.rows, topicRow[T]{p, value})
	}
	t.cache = nil
}

// Match returns the values with a pattern that matches the topic, each once, in the order in which they were added. The caller
// must not change the slice.
func (t *TopicTable[T]) Match(topic string) []T {
	t.mu.RLock()
	values, ok := t.cache[topic]
	t.mu.RUnlock()
	if ok {
		return values
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	for _, row := range t.rows {
		if MatchTopic(row.pattern, topic) && !slices.Contains(values, row.value) {
			values = append(values, row.value)
		}
	}
	if t.cache == nil {
		t.cache = make(map[string][]T)
	}
	if len(t.cache) < maxCachedTopics {
		t.cache[strings.Clone(topic)] = values
	}
	return values
}
