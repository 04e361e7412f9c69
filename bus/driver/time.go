package driver

import (
	"errors"
	"strings"
	"time"
)

// FormatTime formats a time as RFC 3339, in UTC, with nanoseconds.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// ParseTime parses a time as [ReadTime] does. It returns the zero time if s is not RFC 3339.
func ParseTime(s string) time.Time {
	if s == "" { // the common case; ReadTime would allocate an error
		return time.Time{}
	}
	t, _ := ReadTime(s)
	return t
}

// ReadTime parses an RFC 3339 time. Unlike package time it accepts lower-case letters, and leap seconds, which it takes for the
// beginning of the next minute.
func ReadTime(s string) (t time.Time, err error) {
	const minute = "2006-01-02T15:04"
	if strings.Contains(s, ",") { // package time also accepts a comma before the fraction
		return t, errors.New("it has a comma")
	}
	if t, err = time.Parse(time.RFC3339Nano, s); err == nil { // what FormatTime has written
		return t, nil
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
