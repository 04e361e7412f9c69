// Package sqlconfig has the configuration of tables in a database and of the transport over them. Packages sql, inbox and outbox use it,
// and package sql has its names too.
package sqlconfig

import (
	"log/slog"
	"time"
)

// A Dialect names a kind of database.
type Dialect string

// The dialects. Use MySQL for MariaDB too.
const (
	Postgres Dialect = "postgres"
	MySQL    Dialect = "mysql"
	SQLite   Dialect = "sqlite"
)

// Migration configures whether opening a transport changes the tables.
type Migration string

// The values of [Config].Migrate, for tables that are missing or older than the program.
const (
	MigrateAuto  Migration = "auto"  // create or migrate them; safe when many instances start at once
	MigrateCheck Migration = "check" // return a *sql.SchemaError
)

// Config configures a transport and its tables. The zero value is ready to use on PostgreSQL.
type Config struct {
	// Dialect is the dialect of the database. "" means [Postgres].
	Dialect Dialect
	// Schema is the PostgreSQL schema of the tables; it must exist. "" means the first of the search path.
	Schema string
	// Prefix is the prefix of every table's name. "" means leat_.
	Prefix string
	// Migrate configures whether opening changes the tables. "" means [MigrateAuto].
	Migrate Migration
	// StrictRoutes makes Publish fail for a message that no group has subscribed to; see driver.UnroutableError.
	StrictRoutes bool
	// Lease is the time after which the messages of a process that died are redelivered. It is renewed
	// while the process runs, so handlers may take longer. 0 means 30 s.
	Lease time.Duration
	// Prefetch is how many undelivered messages a receiver may buffer. It claims that many only while its
	// handlers keep up. 0 means 1000.
	Prefetch int
	// PrefetchBytes limits the same buffer by size, in bytes; one message always fits. 0 means 8 MiB.
	PrefetchBytes int
	// Poll is the interval at which an idle transport polls for new messages, with one small query. If
	// PostgreSQL's notifications arrive, the interval is at least 250 ms: polling then only finds what
	// others insert, such as a publisher of watermill-sql. 0 means 25 ms.
	Poll time.Duration
	// KeepHandled is how long handled messages of the groups that this process consumes are kept in the
	// table. 0 means that they are deleted at once.
	KeepHandled time.Duration
	// KeepPoisoned is how long messages are kept in the poison queues of the groups that this process
	// consumes. 0 means until somebody drops them.
	KeepPoisoned time.Duration
	// Logger is used for logs. nil means slog.Default().
	Logger *slog.Logger
}
