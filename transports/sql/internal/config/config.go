// Package config completes configurations, and reads them from URLs.
package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

const (
	defaultPrefix        = "leat_"
	defaultLease         = 30 * time.Second
	defaultPrefetch      = 1000
	defaultPrefetchBytes = 8 << 20
	defaultPoll          = 25 * time.Millisecond
)

// Complete returns the configuration with its defaults, or an error if it is invalid.
func Complete(c sqlconfig.Config) (sqlconfig.Config, error) {
	c.Dialect = cmp.Or(c.Dialect, sqlconfig.Postgres)
	c.Prefix = cmp.Or(c.Prefix, defaultPrefix)
	c.Migrate = cmp.Or(c.Migrate, sqlconfig.MigrateAuto)
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

func validate(c sqlconfig.Config) error {
	identifier := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	switch {
	case !identifier.MatchString(c.Prefix) || len(c.Prefix) > maxPrefix:
		return fmt.Errorf("prefix %q: use at most %d letters, digits and _, not beginning with a digit", c.Prefix, maxPrefix)
	case c.Schema != "" && (!identifier.MatchString(c.Schema) || len(c.Schema) > maxSchema):
		return fmt.Errorf("schema %q: use at most %d letters, digits and _, not beginning with a digit", c.Schema, maxSchema)
	case c.Schema != "" && c.Dialect != sqlconfig.Postgres:
		return fmt.Errorf("schema %q: only PostgreSQL has schemas; choose the database by the URL, or use a prefix", c.Schema)
	case c.Migrate != sqlconfig.MigrateAuto && c.Migrate != sqlconfig.MigrateCheck:
		return fmt.Errorf("migrate %q: it is %s or %s", c.Migrate, sqlconfig.MigrateAuto, sqlconfig.MigrateCheck)
	case c.Lease < time.Second:
		return fmt.Errorf("lease %s: it is at least 1s", c.Lease)
	case c.Prefetch < 1 || c.PrefetchBytes < 1 || c.Poll < time.Millisecond || c.KeepHandled < 0 || c.KeepPoisoned < 0:
		return fmt.Errorf("a number is out of range: prefetch %d, prefetch bytes %d, poll %s, keep handled %s, keep poisoned %s",
			c.Prefetch, c.PrefetchBytes, c.Poll, c.KeepHandled, c.KeepPoisoned)
	}
	return nil
}
