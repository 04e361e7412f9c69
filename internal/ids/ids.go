// Package ids generates ids of messages and records.
package ids

import "github.com/google/uuid"

// New returns a new UUIDv7, which is unique and ordered by time. It may be called concurrently.
func New() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic("ids: no randomness: " + err.Error()) // crypto/rand does not fail on any system that Go 1.24 and later run on
	}
	return id.String()
}
