package config

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A Source has the contents of a URL. Package database connects to it.
type Source struct {
	URL         *url.URL
	Config      sqlconfig.Config
	Connections int           // size of the pool
	Silence     time.Duration // after which MySQL closes an idle connection; 0 for the server's setting
	Wait        time.Duration // for a server that is starting; 0 for DefaultWait
	Driver      url.Values    // options for the driver
}

var errScheme = errors.New("use postgres, postgresql, mysql (MariaDB's too) or sqlite")

// Parse reads a URL. Its errors never contain the URL, which may have a password.
func Parse(u *url.URL) (Source, error) {
	s := Source{URL: u, Driver: url.Values{}, Silence: MySQLIdleTimeout}
	o := urlopt.New(u)
	var forDriver []string
	switch u.Scheme {
	case "postgres", "postgresql":
		s.Config.Dialect = sqlconfig.Postgres
		s.Config.Schema = o.String("schema", "")
		forDriver = []string{
			"sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name",
			"search_path", "target_session_attrs", "default_query_exec_mode",
		}
	case "mysql", "mariadb":
		s.Config.Dialect = sqlconfig.MySQL
		forDriver = []string{"tls", "socket", "connect_timeout"}
	case "sqlite":
		s.Config.Dialect = sqlconfig.SQLite
	default:
		return s, fmt.Errorf("scheme %q: %w", u.Scheme, errScheme)
	}
	s.Config.Prefix = o.String("prefix", defaultPrefix)
	s.Config.Migrate = sqlconfig.Migration(o.Choice("migrate", string(sqlconfig.MigrateAuto), string(sqlconfig.MigrateAuto), string(sqlconfig.MigrateCheck)))
	s.Config.StrictRoutes = o.StrictRoutes()
	s.Config.Lease = o.Duration("lease", defaultLease)
	s.Config.Prefetch = o.Int("prefetch", defaultPrefetch, 1)
	s.Config.Poll = o.Duration("poll", defaultPoll)
	s.Config.KeepHandled = o.Duration("keep_handled", 0)
	s.Config.KeepPoisoned = o.Duration("keep_poisoned", 0)
	s.Wait = o.Duration("wait", 0)
	if s.Config.Dialect != sqlconfig.SQLite {
		o.RequireHost(u)
		s.Connections = o.Int("connections", defaultConnections, 2)
	}
	for _, name := range forDriver {
		if v := o.String(name, ""); v != "" {
			s.Driver.Set(name, v)
		}
	}
	if err := o.Err(); err != nil {
		return s, err
	}
	_, err := Complete(s.Config)
	return s, err
}

const (
	defaultConnections = 12
	// DefaultWait is how long opening waits for a server that is starting.
	DefaultWait = 15 * time.Second
	// MySQLIdleTimeout is how long a transport's own connection to MySQL may be idle, also within a
	// transaction. Otherwise a host that vanishes during a claim would keep its locks for eight hours.
	MySQLIdleTimeout = 30 * time.Second
)
