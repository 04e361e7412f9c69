package sql

import (
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/internal/queue"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A Dialect names a kind of database.
type Dialect = sqlconfig.Dialect

// The dialects. Use MySQL for MariaDB too.
const (
	Postgres = sqlconfig.Postgres
	MySQL    = sqlconfig.MySQL
	SQLite   = sqlconfig.SQLite
)

// Migration configures whether opening a transport changes the tables.
type Migration = sqlconfig.Migration

// The values of [Config].Migrate, for tables that are missing or older than the program.
const (
	MigrateAuto  = sqlconfig.MigrateAuto  // create or migrate them; safe when many instances start at once
	MigrateCheck = sqlconfig.MigrateCheck // return a [*SchemaError]
)

// Config configures a [Transport], and the tables of an outbox or an inbox. The zero value is ready to use on PostgreSQL. Its fields
// are the options of a URL, which the package's documentation lists, the dialect and the logger.
type Config = sqlconfig.Config

// A Transport is a [driver.Transport] over a database, with what [driver.TxPublisher], [driver.Inspector], [driver.ConsumerLister],
// [driver.GroupFinder], [driver.GroupRemover] and [driver.HealthChecker] ask for. Its methods may be called concurrently. [New],
// [NewPgx] and [Open] return one; close it after use.
type Transport = queue.Transport

// A SchemaError reports that the tables are missing or have a version that the program can't use.
type SchemaError = database.SchemaError

// SchemaVersion is the newest version of the tables that this program knows. [Migrate] migrates to it, and new tables
// have it.
const SchemaVersion = database.SchemaVersion

// MinSchemaVersion is the oldest version of the tables that this program works with. Opening with [MigrateAuto] migrates
// older tables to it and no further: processes of the previous release may still run while this one is rolled out, and
// do not understand later versions.
const MinSchemaVersion = database.MinSchemaVersion
