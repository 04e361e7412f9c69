package testenv_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// recorder records whether a helper has failed its test.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Fatal(...any) { r.failed = true }

func TestInsist_triesAgainWhereOthersWereInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			err   error
			again bool
		}{
			{fmt.Errorf("drop: %w", &pgconn.PgError{Code: "40P01"}), true},
			{&pgconn.PgError{Code: "53300"}, true},
			{&pgconn.PgError{Code: "42P01"}, false},
			{&mysql.MySQLError{Number: 1213, Message: "Deadlock found"}, true},
			{&mysql.MySQLError{Number: 1146, Message: "no such table"}, false},
			{errors.New("database is locked (5) (SQLITE_BUSY)"), true},
			{errors.New("no such table"), false},
		} {
			tries, r := 0, &recorder{}
			testenv.Insist(r, func() error {
				if tries++; tries == 3 {
					return nil
				}
				return c.err
			})
			require.Equal(t, c.again, tries == 3, c.err)
			require.Equal(t, !c.again, r.failed, c.err)

			r = &recorder{}
			testenv.Insist(r, func() error { return c.err })
			require.True(t, r.failed, "it gives up in the end")
		}
	})
}
