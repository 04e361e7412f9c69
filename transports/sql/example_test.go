package sql_test

import (
	"fmt"
	"strings"

	"github.com/leatbus/leat/transports/sql"
)

// MigrationSQL is for databases whose tables an administrator creates. leat migrate print prints the same.
func ExampleMigrationSQL() {
	script, err := sql.MigrationSQL(sql.Config{Dialect: sql.Postgres, Schema: "bus"}, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	table, _, _ := strings.Cut(script, "(")
	fmt.Println(table)
	// Output: CREATE TABLE IF NOT EXISTS "bus"."leat_migrations"
}
