package database

import "github.com/leatbus/leat/transports/sql/sqlconfig"

// A dialect has what differs between the databases.
type dialect struct {
	Name    sqlconfig.Dialect
	now     string
	quote   func(identifier string) string
	dollars bool   // arguments are $1, $2, …, and a list of ids is one argument
	Ignore  string // ends an insert of rows that may exist

	retryable func(error) bool
	readOnly  func(error) bool
}
