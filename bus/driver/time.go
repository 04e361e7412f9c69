package driver

import (
	"errors"
	"strings"
	"time"
)

// FormatTime returns the time as RFC 3339, in UTC, with its nanoseconds.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// ParseTime reads a time as [ReadTime] does. It returns the zero time for what is no RFC 3339.
func ParseTime(s string) time.Time {
	if s == "" { // as with most messages, and an error is not for nothing
		return time.Time{}
	}
	t, _ := ReadTime(s)
	return t
}

// ReadTime reads all that RFC 3339 allows: what package time does, small letters, and a leap second, which
// is the beginning of the next one.
func ReadTime(s string) (t time.Time, err error) {
	const minute = "2006-01-02T15:04"
	if strings.Contains(s, ",") { // package time takes a comma before the fraction, too
		return t, errors.New("it has a comma")
	}
	s = strings.ToUpper(s)
	leap := strings.HasPrefix(s[min(len(s), len(minute)):], ":60")
	if leap {
		s = s[:len(minute)] + ":59" + s[len(minute)+len(":60"):]
	}
	if t, err = time.Parse(time.RFC3339Nano, s); err == nil && leap {
		t = t.Truncate(time.Second).Add(time.Second)
	}
	return t, err
}
