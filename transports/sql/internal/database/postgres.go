package database

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

func postgresDialect() dialect {
	return dialect{
		Name:      sqlconfig.Postgres,
		now:       "(extract(epoch from statement_timestamp()) * 1000000)::bigint",
		quote:     func(s string) string { return `"` + s + `"` },
		dollars:   true,
		Ignore:    "ON CONFLICT DO NOTHING",
		retryable: postgresRetryable,
		readOnly:  func(err error) bool { return postgresCode(err) == "25006" },
	}
}

func postgresCode(err error) string {
	// An interface, not *pgconn.PgError, to support other drivers of database/sql.
	var coded interface{ SQLState() string }
	if errors.As(err, &coded) {
		return coded.SQLState()
	}
	return ""
}

// postgresRetryable reports whether the same statement may succeed later.
func postgresRetryable(err error) bool {
	code := postgresCode(err)
	if code == "" {
		var connect *pgconn.ConnectError
		return errors.As(err, &connect) || ConnectionLost(err)
	}
	switch code {
	case "25006", // read-only transaction: a failover is under way
		"55P03",          // lock not available
		"57014",          // query canceled: the statement timeout
		"57P01", "57P02", // admin or crash shutdown
		"57P03",          // cannot connect now
		"57P04",          // database dropped: it is being restored
		"57P05", "25P03": // idle session or transaction timeout
		return true
	}
	switch code[:2] {
	case "08", // connection
		"40", // serialization failure, deadlock
		"53", // insufficient resources: connections, memory, disk
		"58": // system error
		return true
	}
	return false
}
