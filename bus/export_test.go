package bus

import "time"

// For the tests of package bus_test.

// RetryDelay returns the delay of an error made by RetryAfter.
func RetryDelay(err error) (time.Duration, bool) { return retryDelay(err) }

// ParseType reads an event type.
func ParseType(s string) (Type, bool) { return parseType(s) }
