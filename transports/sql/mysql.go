package sql

import (
	"errors"
	"strings"

	"github.com/go-sql-driver/mysql"
)

func mysqlDialect() dialect {
	return dialect{
		name: MySQL,
		// UTC_TIMESTAMP has no daylight saving time; UNIX_TIMESTAMP(NOW(6)) is ambiguous for an hour a year.
		now:     "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
		quote:   func(s string) string { return "`" + s + "`" },
		ignore:  "ON DUPLICATE KEY UPDATE created_at = VALUES(created_at)",
		like:    "LIKE %s ESCAPE '|'",
		anyText: "%",
		literal: strings.NewReplacer("|", "||", "%", "|%", "_", "|_"),

		// The casts are for prepared statements, which would reject bytes that are not valid text. The first SELECT
		// returns no row; it gives the columns their types. Without it, MySQL limits a column of parameters to 65,535
		// bytes, and truncates longer values without an error.
		rowValues:   "SELECT ? AS uuid, CAST(? AS BINARY) AS headers, CAST(? AS BINARY) AS payload, ? AS lane, ? AS delay, %d AS n",
		rowSeparate: " UNION ALL ",
		rowsTable: "(SELECT NULL AS uuid, CAST(NULL AS BINARY(4294967295)) AS headers, CAST(NULL AS BINARY(4294967295)) AS payload, " +
			"CAST(NULL AS SIGNED) AS lane, CAST(NULL AS SIGNED) AS delay, 0 AS n FROM DUAL WHERE FALSE UNION ALL %s) m",
		whenHeaders: " WHEN ? THEN CAST(? AS BINARY)",
		committers:  3,
		retryable:   mysqlRetryable,
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
		return errors.Is(err, mysql.ErrInvalidConn) || connectionLost(err)
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

// FORCE INDEX keeps the optimizer from reading other groups' messages by the primary key.
const claimMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages} {force}
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live})
ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED`

// seeMySQL and lockMySQL are the claim of a group's only worker, which gets messages in order. A locking read sees
// rows that are committed while it runs, so it may miss the first message of a commit and return the second. A read
// that does not lock sees all of a commit or nothing.
const (
	seeMySQL = `
SELECT id FROM {messages} {force}
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live}) ORDER BY id LIMIT ?`
	lockMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages}
WHERE state = {ready} AND owner NOT IN ({live}) AND id {in} ORDER BY id FOR UPDATE SKIP LOCKED`
)

// headsMySQL reads a page of the rows of key queues, in order; the next page starts at the next key queue. It does not
// rely on InnoDB to skip from one key queue to the next: for a GROUP BY with MIN that depends on the statistics, and a recursive
// query reads all key queues from the first one for each step.
const headsMySQL = `
SELECT pos, id FROM {messages} {force}
WHERE group_id = ? AND state = {keyed} AND pos > ? ORDER BY group_id, state, pos, id LIMIT ?`
