package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"leat": main}) }

// updateVariable updates the help texts that the scripts compare with.
const updateVariable = "LEAT_TEST_UPDATE"

func TestUsage(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/usage",
		Setup:         setup,
		UpdateScripts: os.Getenv(updateVariable) != "",
	})
}

// setup lets a program with the race detector end at once instead of after a second.
func setup(e *testscript.Env) error {
	e.Setenv("GORACE", "atexit_sleep_ms=0")
	return nil
}

// TestTables runs the same scripts against every database system.
func TestTables(t *testing.T) {
	for name, database := range map[string]func(*testing.T) string{"postgres": onPostgres, "mysql": onMySQL, "sqlite": onSQLite} {
		t.Run(name, func(t *testing.T) {
			address := database(t)
			var scripts atomic.Int32
			testscript.Run(t, testscript.Params{
				Dir: "testdata/tables",
				Setup: func(e *testscript.Env) error {
					n := scripts.Add(1) // each script has tables of its own, and they run at once
					e.Setenv("LEAT_URL", testenv.WithOption(t, address, "prefix", fmt.Sprintf("cli%d_", n)))
					return setup(e)
				},
			})
		})
	}
}

func onPostgres(t *testing.T) string {
	address, schema := testenv.Postgres(t), unique()
	statement(t, address, "CREATE SCHEMA "+schema)
	t.Cleanup(func() { statement(t, address, "DROP SCHEMA "+schema+" CASCADE") })
	return testenv.WithOption(t, address, "schema", schema)
}

func onMySQL(t *testing.T) string {
	address, name := testenv.MySQL(t), unique()
	statement(t, address, "CREATE DATABASE "+name)
	t.Cleanup(func() { statement(t, address, "DROP DATABASE "+name) })
	u, err := url.Parse(address)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

func onSQLite(t *testing.T) string { return "sqlite://" + filepath.Join(t.TempDir(), "leat.db") }

func unique() string { return fmt.Sprintf("leat_test_%08x", rand.Uint32()) }

// statement runs one statement.
func statement(t *testing.T, address, query string) {
	u, err := url.Parse(address)
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	_, err = db.ExecContext(context.Background(), query)
	require.NoError(t, err)
}
