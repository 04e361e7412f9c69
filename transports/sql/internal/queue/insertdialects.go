package queue

import (
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// insertRows is how an insert passes the values of its messages.
type insertRows struct {
	values    string // one message; %d is its number
	separator string
	table     string // all messages as the table m
}

func insertRowsOf(dialect sqlconfig.Dialect) insertRows {
	switch dialect {
	case sqlconfig.Postgres:
		return insertRows{
			values:    "(?::text, ?::bytea, ?::bytea, ?::bigint, ?::bigint, %d)",
			separator: ", ",
			table:     "(VALUES %s) AS m(uuid, headers, payload, lane, delay, n)",
		}
	case sqlconfig.MySQL:
		// The casts are for prepared statements, which would reject bytes that are not valid text. The first SELECT
		// returns no row; it gives the columns their types. Without it, MySQL limits a column of parameters to 65,535
		// bytes, and truncates longer values without an error.
		return insertRows{
			values:    "SELECT ? AS uuid, CAST(? AS BINARY) AS headers, CAST(? AS BINARY) AS payload, ? AS lane, ? AS delay, %d AS n",
			separator: " UNION ALL ",
			table: "(SELECT NULL AS uuid, CAST(NULL AS BINARY(4294967295)) AS headers, CAST(NULL AS BINARY(4294967295)) AS payload, " +
				"CAST(NULL AS SIGNED) AS lane, CAST(NULL AS SIGNED) AS delay, 0 AS n FROM DUAL WHERE FALSE UNION ALL %s) m",
		}
	default:
		return insertRows{
			values:    "(?, ?, ?, ?, ?, %d)",
			separator: ", ",
			table: "(SELECT column1 AS uuid, column2 AS headers, column3 AS payload, column4 AS lane, " +
				"column5 AS delay, column6 AS n FROM (VALUES %s)) m",
		}
	}
}

// whenHeaders is a branch of a CASE with the headers of one id.
func whenHeaders(dialect sqlconfig.Dialect) string {
	switch dialect {
	case sqlconfig.Postgres:
		return " WHEN ?::bigint THEN ?::bytea"
	case sqlconfig.MySQL:
		return " WHEN ? THEN CAST(? AS BINARY)"
	default:
		return " WHEN ? THEN ?"
	}
}

// committers returns how many publishers' commits run at once. SQLite has one writer.
func committers(dialect sqlconfig.Dialect) int {
	if dialect == sqlconfig.SQLite {
		return 1
	}
	return 3
}
