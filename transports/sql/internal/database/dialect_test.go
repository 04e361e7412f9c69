package database

import (
	"errors"
	"fmt"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestStates_haveTheSameNamesInTheTable compares the names in the table with those in statements.
func TestStates_haveTheSameNamesInTheTable(t *testing.T) {
	for _, name := range []sqlconfig.Dialect{sqlconfig.Postgres, sqlconfig.MySQL, sqlconfig.SQLite} {
		script, err := MigrationScript(sqlconfig.Config{Dialect: name}, 0)
		require.NoError(t, err)
		for n, state := range stateNames {
			require.Contains(t, script, fmt.Sprintf("(%d, '%s', '", n, state), name)
		}
		require.NotContains(t, script, fmt.Sprintf("(%d, '", len(stateNames)), name)
	}
}

func TestRetryable_errorCodes(t *testing.T) {
	pg, my, lite := postgresDialect(), mysqlDialect(), sqliteDialect()
	for _, code := range []string{"40001", "40P01", "57P01", "57014", "08006", "53300", "25006", "55P03", "25P03", "57P04"} {
		require.True(t, pg.retryable(fmt.Errorf("x: %w", &pgconn.PgError{Code: code})), code)
	}
	for _, code := range []string{"23505", "42P01", "22021", "42501", "28P01"} {
		require.False(t, pg.retryable(&pgconn.PgError{Code: code}), code)
	}
	for _, n := range []uint16{1020, 1205, 1213, 1467, 1290, 1040, 1053, 4031} {
		require.True(t, my.retryable(&mysql.MySQLError{Number: n}), n)
	}
	for _, n := range []uint16{1045, 1062, 1146, 1153} {
		require.False(t, my.retryable(&mysql.MySQLError{Number: n}), n)
	}
	for _, d := range []dialect{pg, my, lite} {
		require.True(t, d.retryable(errors.New("conn closed")))
		require.False(t, d.retryable(errors.New("something else")))
	}
}
