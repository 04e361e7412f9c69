package sql

import (
	"errors"
	"strings"

	"github.com/go-sql-driver/mysql"
)

func mysqlDialect() dialect {
	return dialect{
		name: MySQL,
		// UTC_TIMESTAMP has no summer time, where UNIX_TIMESTAMP(NOW(6)) guesses for an hour a year.
		now:     "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
		quote:   func(s string) string { return "`" + s + "`" },
		ignore:  "ON DUPLICATE KEY UPDATE created_at = VALUES(created_at)",
		like:    "LIKE %s ESCAPE '|'",
		anyText: "%",
		literal: strings.NewReplacer("|", "||", "%", "|%", "_", "|_"),

		// The casts are for prepared statements: what is no valid text would be refused. The first row, which
		// is none, gives the columns their types: MySQL takes a column of parameters for at most 65,535
		// bytes, and cuts what is longer without a word.
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
		1021,             // disk full; the server waits for space by itself
		1053, 1927, 4031, // shutdown, connection killed, disconnected for its silence
		1020, 1205, 1213, // changed since the snapshot, lock wait timeout, deadlock
		1290, 1792, 1836, // read-only: a failover is under way
		1317, 1969, 3024: // interrupted, statement timeout
		return true
	default:
		return false
	}
}

// The hint keeps the optimizer from walking through other groups by the primary key.
const claimMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages} FORCE INDEX ({queue})
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live})
ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED`

// seeMySQL and lockMySQL are the claim for a group's only worker, who gets messages in their order. A
// locking read sees what is committed while it goes on, and so may miss the first message of a commit and
// take the second; one that locks nothing sees all of a commit or none.
const (
	seeMySQL = `
SELECT id FROM {messages} FORCE INDEX ({queue})
WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live}) ORDER BY id LIMIT ?`
	lockMySQL = `
SELECT id, LENGTH(payload) + LENGTH(headers) FROM {messages}
WHERE state = {ready} AND owner NOT IN ({live}) AND id {in} ORDER BY id FOR UPDATE SKIP LOCKED`
)

// headsMySQL reads the rows of key queues in their order, some of each at most: the next page begins at the next
// key queue. InnoDB can't be trusted to jump from key queue to key queue by itself. Whether it does so for a GROUP BY with MIN
// depends on its statistics, and in a recursive query it reads all key queues from the first one for each.
const headsMySQL = `
SELECT pos, id FROM {messages} FORCE INDEX ({queue})
WHERE group_id = ? AND state = {keyed} AND pos > ? ORDER BY group_id, state, pos, id LIMIT ?`
