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

// Schemes returns the URL schemes.
func Schemes() []string { return []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"} }

// Open makes a transport from its URL; see the package's documentation for the options. It connects,
// sees to the tables, and waits for a server that is just starting as long as ctx allows, but no
// longer than the option wait.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	source, err := parse(u)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	source.silence = mysqlSilence
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

// OpenDB opens the database of a URL through database/sql, with the configuration that the URL's
// options make: for [Migrate] and its like. The pool is the caller's to close.
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

// OpenExistingDB does what [OpenDB] does for a database that is only looked at. If a SQLite file is not there, it
// makes none and returns an error that is [os.ErrNotExist], with the configuration.
func OpenExistingDB(u *url.URL) (*stdsql.DB, Config, error) {
	source, err := parse(u)
	if err != nil || source.cfg.Dialect != SQLite {
		return OpenDB(u)
	}
	path, err := locateSQLite(u)
	if err == nil {
		_, err = os.Stat(path) //nolint:gosec // the operator says where to look
	}
	if err != nil {
		return nil, source.cfg, fmt.Errorf("sql: %w", err)
	}
	return OpenDB(u)
}

// source is what a URL says.
type source struct {
	url         *url.URL
	cfg         Config
	connections int
	silence     time.Duration // after which MySQL gives up on a connection; 0 for the server's own time
	wait        time.Duration
	driver      url.Values // what goes to the driver
}

var errScheme = errors.New("use postgres, postgresql, mysql (MariaDB's too) or sqlite")

// parse reads a URL. Its errors never show the URL: there may be a password in it.
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
	s.cfg.Unroutable = Unroutable(o.Choice("unroutable", string(UnroutableReport), string(UnroutableReport), string(UnroutableError)))
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
	// mysqlSilence is how long a transport's own connection to MySQL may be silent, also within a
	// transaction: a host that vanishes in the middle of a claim would keep its locks for eight hours.
	mysqlSilence = 30 * time.Second
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
		parts := strings.Split(parse.Error(), "`: ") // the first is the URL, options included
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
	errFileNUL    = errors.New("the file's name has a NUL character, %00; leave it out")
	errInMemory   = errors.New("a database in memory outlives no process; use memory://, which is quicker")
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
	cfg.InterpolateParams = true // one round trip in place of three
	cfg.RejectReadOnly = true    // a failover is under way: the connection leads to the wrong server
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

// sqlitePath returns the file of a URL: sqlite:///path and sqlite:////path are from the root,
// sqlite:path and sqlite://./path from the working directory.
func sqlitePath(u *url.URL) (string, error) {
	path := u.Host + u.Path
	if u.Opaque != "" {
		var err error
		if path, err = url.PathUnescape(u.Opaque); err != nil {
			return "", errors.New("the file's name can't be read; write %25 for a % in it")
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

// locateSQLite returns the file of a URL; its directory must be there.
func locateSQLite(u *url.URL) (string, error) {
	path, err := sqlitePath(u)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() { //nolint:gosec // the operator says where
		return "", fmt.Errorf("the directory of %s is missing; make it first, or write sqlite:///path from the root and sqlite:path from the working directory", path)
	}
	return path, nil
}

func (s source) connectSQLite() (pool, error) {
	if !slices.Contains(stdsql.Drivers(), sqliteDriver) {
		return nil, errNoDriver // before a file is made
	}
	path, err := locateSQLite(s.url)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if s.cfg.Migrate == MigrateCheck {
			return nil, &SchemaError{Found: 0, Want: MinSchemaVersion, Prefix: s.cfg.Prefix} // opening would make an empty file
		}
		// SQLite would make the file readable for every user of the machine. Its -wal and -shm files get the same mode.
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
