package sql_test

import (
	"testing"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

func TestMain(m *testing.M) {
	testenv.AtOnce(4) // they mostly wait for servers and leases
	testenv.Main(m)
}

// A system is a database for one test.
type system struct{ sqltest.System }

// eachSystem runs a parallel test on each system.
func eachSystem(t *testing.T, test func(t *testing.T, s system)) {
	sqltest.EachSystem(t, func(t *testing.T, s sqltest.System) { test(t, system{s}) })
}

func onPostgres(t testing.TB) system { return system{sqltest.OnPostgres(t)} }
func onMySQL(t testing.TB) system    { return system{sqltest.OnMySQL(t)} }
func onSQLite(t testing.TB) system   { return system{sqltest.OnSQLite(t)} }
