package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// Schemes returns the URL schemes that [Open] supports.
func Schemes() []string { return []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"} }

// Open returns a transport for a URL; see the package's documentation for the options. It connects,
// and creates and migrates the tables. If the server is starting, it blocks until ctx is done or the time of
// the option wait has passed.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	source, err := parse(u)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	source.silence = mysqlIdleTimeout
	source.cfg.Logger = driver.LoggerFrom(ctx)
	db, err := source.connect()
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	waiting, cancel := backoff.Bound(ctx, source.wait, defaultWait)
	defer cancel()
	t, err := open(waiting, db, source.cfg)
	if err != nil {
		db.close()
		return nil, err
	}
	return t, nil
}

// OpenDB opens the database of a URL through database/sql, and returns the configuration of the URL's
// options, for functions such as [Migrate]. It does not connect. The caller must close the pool.
func OpenDB(u *url.URL) (*stdsql.DB, Config, error) {
	source, err := parse(u)
	if err != nil {
		return nil, Config{}, fmt.Errorf("sql: %w", err)
	}
	db, err := source.connect()
	if err != nil {
		return nil, Config{}, fmt.Errorf("sql: %w", err)
	}
	switch db := db.(type) {
	case *pgxPool:
		std := stdlib.OpenDB(*db.pool.Config().ConnConfig)
		db.close()
		return std, source.cfg, nil
	case *sqlitePool:
		return db.db, source.cfg, nil
	default:
		return db.(*stdPool).db, source.cfg, nil
	}
}

// OpenExistingDB does the same as [OpenDB], but does not create a SQLite file. If the file does not exist, it returns the
// configuration and an error that wraps [os.ErrNotExist].
func OpenExistingDB(u *url.URL) (*stdsql.DB, Config, error) {
	source, err := parse(u)
	if err != nil || source.cfg.Dialect != SQLite {
		return OpenDB(u)
	}
	path, err := locateSQLite(u)
	if err == nil {
		_, err = os.Stat(path) //nolint:gosec // the operator chooses the path
	}
	if err != nil {
		return nil, source.cfg, fmt.Errorf("sql: %w", err)
	}
	return OpenDB(u)
}

// A source has the contents of a URL.
type source struct {
	url         *url.URL
	cfg         Config
	connections int
	silence     time.Duration // after which MySQL closes an idle connection; 0 for the server's setting
	wait        time.Duration
	driver      url.Values // options for the driver
}

var errScheme = errors.New("use postgres, postgresql, mysql (MariaDB's too) or sqlite")

// parse reads a URL. Its errors never contain the URL, which may have a password.
func parse(u *url.URL) (source, error) {
	s := source{url: u, driver: url.Values{}}
	o := urlopt.New(u)
	var forDriver []string
	switch u.Scheme {
	case "postgres", "postgresql":
		s.cfg.Dialect = Postgres
		s.cfg.Schema = o.String("schema", "")
		forDriver = []string{
			"sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name",
			"search_path", "target_session_attrs", "default_query_exec_mode",
		}
	case "mysql", "mariadb":
		s.cfg.Dialect = MySQL
		forDriver = []string{"tls", "socket", "connect_timeout"}
	case "sqlite":
		s.cfg.Dialect = SQLite
	default:
		return s, fmt.Errorf("scheme %q: %w", u.Scheme, errScheme)
	}
	s.cfg.Prefix = o.String("prefix", defaultPrefix)
	s.cfg.Migrate = Migration(o.Choice("migrate", string(MigrateAuto), string(MigrateAuto), string(MigrateCheck)))
	s.cfg.StrictRoutes = o.StrictRoutes()
	s.cfg.Lease = o.Duration("lease", defaultLease)
	s.cfg.Prefetch = o.Int("prefetch", defaultPrefetch, 1)
	s.cfg.Poll = o.Duration("poll", defaultPoll)
	s.cfg.KeepHandled = o.Duration("keep_handled", 0)
	s.cfg.KeepPoisoned = o.Duration("keep_poisoned", 0)
	s.wait = o.Duration("wait", 0)
	if s.cfg.Dialect != SQLite {
		o.RequireHost(u)
		s.connections = o.Int("connections", defaultConnections, 2)
	}
	for _, name := range forDriver {
		if v := o.String(name, ""); v != "" {
			s.driver.Set(name, v)
		}
	}
	if err := o.Err(); err != nil {
		return s, err
	}
	return s, s.cfg.withDefaults().validate()
}

const (
	defaultConnections = 12
	defaultWait        = 15 * time.Second
	// mysqlIdleTimeout is how long a transport's own connection to MySQL may be idle, also within a
	// transaction. Otherwise a host that vanishes during a claim would keep its locks for eight hours.
	mysqlIdleTimeout = 30 * time.Second
)

func (s source) connect() (pool, error) {
	switch s.cfg.Dialect {
	case Postgres:
		return s.connectPostgres()
	case MySQL:
		return s.connectMySQL()
	default:
		return s.connectSQLite()
	}
}

func (s source) connectPostgres() (pool, error) {
	clean := *s.url
	if s.driver.Get("application_name") == "" {
		s.driver.Set("application_name", "leat")
	}
	if s.driver.Get("connect_timeout") == "" {
		s.driver.Set("connect_timeout", "5")
	}
	clean.RawQuery = s.driver.Encode()
	cfg, err := pgxpool.ParseConfig(clean.String())
	if parse, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		parts := strings.Split(parse.Error(), "`: ") // the first part has the URL with its options
		return nil, fmt.Errorf("the URL can't be used: %s", strings.Join(parts[1:], ""))
	} else if err != nil {
		return nil, err
	}
	cfg.MaxConnIdleTime = time.Minute
	cfg.MaxConns = int32(s.connections) //nolint:gosec // a small number
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	return &pgxPool{pool: pool, owned: true}, nil
}

var (
	errNoDatabase = errors.New("the URL names no database; write mysql://user:password@host:3306/database")
	errNoFile     = errors.New("the URL names no file; write sqlite:///path/to/file.db, or sqlite:file.db for one in the working directory")
	errNotAHost   = errors.New("a SQLite file has no user and no port; write sqlite:///path/to/file.db")
	errFileNUL    = errors.New("the file's name has a NUL character, %00; remove it")
	errInMemory   = errors.New("a database in memory is lost when the process ends; use memory://, which is faster")
)

func (s source) connectMySQL() (pool, error) {
	cfg := mysql.NewConfig()
	cfg.DBName = strings.TrimPrefix(s.url.Path, "/")
	if cfg.DBName == "" || strings.Contains(cfg.DBName, "/") {
		return nil, errNoDatabase
	}
	cfg.User = s.url.User.Username()
	cfg.Passwd, _ = s.url.User.Password()
	cfg.Net, cfg.Addr = "tcp", s.url.Host
	if s.url.Port() == "" {
		cfg.Addr = net.JoinHostPort(s.url.Hostname(), "3306")
	}
	if socket := s.driver.Get("socket"); socket != "" {
		cfg.Net, cfg.Addr = "unix", socket
	}
	cfg.TLSConfig = s.driver.Get("tls")
	cfg.Timeout = 5 * time.Second
	if timeout := s.driver.Get("connect_timeout"); timeout != "" {
		d, err := time.ParseDuration(timeout + "s")
		if err != nil {
			return nil, fmt.Errorf("option connect_timeout=%q: it is a number of seconds", timeout)
		}
		cfg.Timeout = d
	}
	cfg.InterpolateParams = true // one round trip instead of three
	cfg.RejectReadOnly = true    // after a failover, the connection is to the wrong server
	cfg.Logger = &mysql.NopLogger{}
	cfg.MaxAllowedPacket = 0 // ask the server
	cfg.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES'", "autocommit": "1"}
	idle := time.Minute
	if s.silence > 0 {
		cfg.Params["wait_timeout"] = strconv.Itoa(int(s.silence.Seconds()))
		idle = s.silence * 2 / 3 // before the server closes it
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := stdsql.OpenDB(connector)
	db.SetMaxOpenConns(s.connections)
	db.SetMaxIdleConns(s.connections)
	db.SetConnMaxIdleTime(idle)
	return &stdPool{db: db, owned: true, tx: &stdsql.TxOptions{Isolation: stdsql.LevelReadCommitted}}, nil
}

// sqlitePath returns the file of a URL: sqlite:///path and sqlite:////path are absolute,
// sqlite:path and sqlite://./path relative to the working directory.
func sqlitePath(u *url.URL) (string, error) {
	path := u.Host + u.Path
	if u.Opaque != "" {
		var err error
		if path, err = url.PathUnescape(u.Opaque); err != nil {
			return "", errors.New("the file's name can't be decoded; write %25 for a % in it")
		}
	}
	switch {
	case u.User != nil || u.Port() != "":
		return "", errNotAHost
	case strings.ContainsRune(path, 0):
		return "", errFileNUL
	case strings.Contains(path, ":memory:"):
		return "", errInMemory
	case strings.Trim(path, "/.") == "" || strings.HasSuffix(path, "/"):
		return "", errNoFile
	}
	return filepath.Clean(path), nil
}

// locateSQLite returns the file of a URL. It returns an error if the file's directory does not exist.
func locateSQLite(u *url.URL) (string, error) {
	path, err := sqlitePath(u)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() { //nolint:gosec // the operator chooses the path
		return "", fmt.Errorf("the directory of %s is missing; create it, or write sqlite:///path for an absolute path and sqlite:path for one relative to the working directory", path)
	}
	return path, nil
}

func (s source) connectSQLite() (pool, error) {
	if !slices.Contains(stdsql.Drivers(), sqliteDriver) {
		return nil, errNoDriver // before the file is created
	}
	path, err := locateSQLite(s.url)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if s.cfg.Migrate == MigrateCheck {
			return nil, &SchemaError{Found: 0, Want: MinSchemaVersion, Prefix: s.cfg.Prefix} // opening would create an empty file
		}
		// SQLite would create the file readable by all users. The -wal and -shm files get the mode of the file.
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: url.Values{
		"_pragma": {"busy_timeout(2)", "journal_mode(WAL)", "synchronous(FULL)"},
		"_txlock": {"immediate"},
	}.Encode()}
	db, err := stdsql.Open(sqliteDriver, dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return newSQLitePool(db), nil
}
