// Package config has what users configure: the tables, the transport over them, and the same as the options of a URL.
package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"regexp"
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
	MigrateCheck Migration = "check" // return a *database.SchemaError
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

const (
	defaultPrefix        = "leat_"
	defaultLease         = 30 * time.Second
	defaultPrefetch      = 1000
	defaultPrefetchBytes = 8 << 20
	defaultPoll          = 25 * time.Millisecond
)

// Complete returns the configuration with its defaults, or an error if it is invalid.
func Complete(c Config) (Config, error) {
	c.Dialect = cmp.Or(c.Dialect, Postgres)
	c.Prefix = cmp.Or(c.Prefix, defaultPrefix)
	c.Migrate = cmp.Or(c.Migrate, MigrateAuto)
	c.Lease = cmp.Or(c.Lease, defaultLease)
	c.Prefetch = cmp.Or(c.Prefetch, defaultPrefetch)
	c.PrefetchBytes = cmp.Or(c.PrefetchBytes, defaultPrefetchBytes)
	c.Poll = cmp.Or(c.Poll, defaultPoll)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c, validate(c)
}

// Prefix and schema become parts of statements, so only known characters are allowed. PostgreSQL
// truncates names to 63 bytes without an error, hence the limits.
const (
	maxPrefix = 30
	maxSchema = 63
)

func validate(c Config) error {
	identifier := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	switch {
	case !identifier.MatchString(c.Prefix) || len(c.Prefix) > maxPrefix:
		return fmt.Errorf("prefix %q: use at most %d letters, digits and _, not beginning with a digit", c.Prefix, maxPrefix)
	case c.Schema != "" && (!identifier.MatchString(c.Schema) || len(c.Schema) > maxSchema):
		return fmt.Errorf("schema %q: use at most %d letters, digits and _, not beginning with a digit", c.Schema, maxSchema)
	case c.Schema != "" && c.Dialect != Postgres:
		return fmt.Errorf("schema %q: only PostgreSQL has schemas; choose the database by the URL, or use a prefix", c.Schema)
	case c.Migrate != MigrateAuto && c.Migrate != MigrateCheck:
		return fmt.Errorf("migrate %q: it is %s or %s", c.Migrate, MigrateAuto, MigrateCheck)
	case c.Lease < time.Second:
		return fmt.Errorf("lease %s: it is at least 1s", c.Lease)
	case c.Prefetch < 1 || c.PrefetchBytes < 1 || c.Poll < time.Millisecond || c.KeepHandled < 0 || c.KeepPoisoned < 0:
		return fmt.Errorf("a number is out of range: prefetch %d, prefetch bytes %d, poll %s, keep handled %s, keep poisoned %s",
			c.Prefetch, c.PrefetchBytes, c.Poll, c.KeepHandled, c.KeepPoisoned)
	}
	return nil
}
