package sql

import (
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Dialect is a database system.
type Dialect string

// The dialects. MySQL is MariaDB's too.
const (
	Postgres Dialect = "postgres"
	MySQL    Dialect = "mysql"
	SQLite   Dialect = "sqlite"
)

// Migration says what opening a transport does about the tables.
type Migration string

// What opening does about tables that are missing or older than the program.
const (
	MigrateAuto  Migration = "auto"  // makes or alters them; safe when many instances start at once
	MigrateCheck Migration = "check" // fails, and changes nothing
)

// Unroutable says what Publish does with a message that no group wants.
type Unroutable string

// What becomes of a message that no group wants. It is never stored.
const (
	UnroutableReport Unroutable = "report" // reported; the bus counts and logs it
	UnroutableError  Unroutable = "error"  // Publish fails
)

// Config is how a transport works. Its zero value does.
type Config struct {
	// Dialect is the database's. "" means [Postgres].
	Dialect Dialect
	// Schema is the PostgreSQL schema of the tables; it must exist. "" means the search path's first.
	Schema string
	// Prefix begins every table's name. "" means leat_.
	Prefix string
	// Migrate is what opening does about the tables. "" means [MigrateAuto].
	Migrate Migration
	// Unroutable is what becomes of messages that no group wants. "" means [UnroutableReport].
	Unroutable Unroutable
	// Lease is how long the messages of a process that died stay with it. It is renewed, so
	// handlers may take longer. 0 means 30 s.
	Lease time.Duration
	// Prefetch is how many messages a feed may hold that it has not handed out yet. It takes that
	// many only while its handlers keep up with them. 0 means 1000.
	Prefetch int
	// PrefetchBytes bounds the same in bytes of payload; one message always fits. 0 means 8 MiB.
	PrefetchBytes int
	// Poll is how often an idle transport looks, with one small query, whether anything was
	// published. Processes of one PostgreSQL notify each other, and look four times a second at most: for
	// what others insert, such as a publisher of watermill-sql. 0 means 25 ms.
	Poll time.Duration
	// KeepHandled is how long handled messages of the groups that this process consumes stay in their
	// table. 0 means not at all.
	KeepHandled time.Duration
	// KeepPoisoned is how long messages stay in the poison queues of the groups that this process
	// consumes. 0 means until somebody drops them.
	KeepPoisoned time.Duration
	// Logger is nil for slog.Default().
	Logger *slog.Logger
}

const (
	defaultPrefix        = "leat_"
	defaultLease         = 30 * time.Second
	defaultPrefetch      = 1000
	defaultPrefetchBytes = 8 << 20
	defaultPoll          = 25 * time.Millisecond
)

func (c Config) withDefaults() Config {
	if c.Dialect == "" {
		c.Dialect = Postgres
	}
	if c.Prefix == "" {
		c.Prefix = defaultPrefix
	}
	if c.Migrate == "" {
		c.Migrate = MigrateAuto
	}
	if c.Unroutable == "" {
		c.Unroutable = UnroutableReport
	}
	if c.Lease == 0 {
		c.Lease = defaultLease
	}
	if c.Prefetch == 0 {
		c.Prefetch = defaultPrefetch
	}
	if c.PrefetchBytes == 0 {
		c.PrefetchBytes = defaultPrefetchBytes
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Names become parts of statements, so they are checked by what they may be, not by what they may
// not. PostgreSQL cuts names at 63 bytes without a word, hence the limits.
const (
	maxPrefix = 30
	maxSchema = 63
)

func (c Config) validate() error {
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
	case c.Unroutable != UnroutableReport && c.Unroutable != UnroutableError:
		return fmt.Errorf("unroutable %q: it is %s or %s", c.Unroutable, UnroutableReport, UnroutableError)
	case c.Lease < time.Second:
		return fmt.Errorf("lease %s: it is at least 1s", c.Lease)
	case c.Prefetch < 1 || c.PrefetchBytes < 1 || c.Poll < time.Millisecond || c.KeepHandled < 0 || c.KeepPoisoned < 0:
		return fmt.Errorf("a number is out of range: prefetch %d, prefetch bytes %d, poll %s, keep handled %s, keep poisoned %s",
			c.Prefetch, c.PrefetchBytes, c.Poll, c.KeepHandled, c.KeepPoisoned)
	}
	return nil
}
