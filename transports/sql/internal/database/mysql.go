package database

import (
	"errors"

	"github.com/go-sql-driver/mysql"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

func mysqlDialect() dialect {
	return dialect{
		Name: sqlconfig.MySQL,
		// UTC_TIMESTAMP has no daylight saving time; UNIX_TIMESTAMP(NOW(6)) is ambiguous for an hour a year.
		now:       "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
		quote:     func(s string) string { return "`" + s + "`" },
		Ignore:    "ON DUPLICATE KEY UPDATE created_at = VALUES(created_at)",
		retryable: mysqlRetryable,
		readOnly: func(err error) bool {
			n := mysqlNumber(err)
			return n == 1290 || n == 1792 || n == 1836
		},
	}
}

func mysqlNumber(err error) uint16 {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return e.Number
	}
	return 0
}

func mysqlRetryable(err error) bool {
	switch mysqlNumber(err) {
	case 0:
		return errors.Is(err, mysql.ErrInvalidConn) || ConnectionLost(err)
	case 1040, 1203, // too many connections
		1021,             // disk full; the server waits for space
		1053, 1927, 4031, // shutdown, connection killed, disconnected because idle
		1020, 1205, 1213, // changed since the snapshot, lock wait timeout, deadlock
		1290, 1792, 1836, // read-only: a failover is under way
		1317, 1969, 3024, // interrupted, statement timeout
		1467: // the same, while waiting for the next id
		return true
	default:
		return false
	}
}
