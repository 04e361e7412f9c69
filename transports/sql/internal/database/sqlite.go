package database

import (
	"errors"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// sqliteDriver is the name under which package transports/sqlite registers its driver.
const sqliteDriver = "sqlite"

var errNoDriver = errors.New(`sqlite:// needs the driver; add import _ "github.com/leatbus/leat/transports/sqlite" to the main package`)

// A sqliteError is an error of the driver. It is an interface, because this package must not import the driver.
type sqliteError interface {
	error
	Code() int // SQLite's result code
}

func sqliteDialect() dialect {
	return dialect{
		Name:      sqlconfig.SQLite,
		now:       "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)",
		quote:     func(s string) string { return `"` + s + `"` },
		Ignore:    "ON CONFLICT DO NOTHING",
		retryable: sqliteRetryable,
		readOnly:  func(error) bool { return false },
	}
}

func sqliteRetryable(err error) bool {
	e, ok := errors.AsType[sqliteError](err)
	if !ok {
		return ConnectionLost(err)
	}
	switch e.Code() & 0xff {
	case 5, 6: // busy, locked
		return true
	default:
		return false
	}
}
