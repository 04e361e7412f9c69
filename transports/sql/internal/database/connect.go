package database

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

	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// Connect opens the pool of a URL.
func Connect(s config.Source) (Pool, error) {
	switch s.Config.Dialect {
	case sqlconfig.Postgres:
		return connectPostgres(s)
	case sqlconfig.MySQL:
		return connectMySQL(s)
	default:
		return connectSQLite(s)
	}
}

// OpenDB opens the database of a URL through database/sql, and does not connect.
func OpenDB(s config.Source) (*stdsql.DB, error) {
	s.Silence = 0 // the caller configures the pool
	over, err := Connect(s)
	if err != nil {
		return nil, err
	}
	switch over := over.(type) {
	case *PgxPool:
		defer over.Close()
		return stdlib.OpenDB(*over.Pool.Config().ConnConfig), nil
	case *sqlitePool:
		return over.DB, nil
	default:
		return over.(*StdPool).DB, nil
	}
}

func connectPostgres(s config.Source) (Pool, error) {
	clean := *s.URL
	if s.Driver.Get("application_name") == "" {
		s.Driver.Set("application_name", "leat")
	}
	if s.Driver.Get("connect_timeout") == "" {
		s.Driver.Set("connect_timeout", "5")
	}
	clean.RawQuery = s.Driver.Encode()
	cfg, err := pgxpool.ParseConfig(clean.String())
	if parse, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		parts := strings.Split(parse.Error(), "`: ") // the first part has the URL with its options
		return nil, fmt.Errorf("the URL can't be used: %s", strings.Join(parts[1:], ""))
	} else if err != nil {
		return nil, err
	}
	cfg.MaxConnIdleTime = time.Minute
	cfg.MaxConns = int32(s.Connections) //nolint:gosec // a small number
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	return &PgxPool{Pool: pool, owned: true}, nil
}

var (
	errNoDatabase = errors.New("the URL names no database; write mysql://user:password@host:3306/database")
	errNoFile     = errors.New("the URL names no file; write sqlite:///path/to/file.db, or sqlite:file.db for one in the working directory")
	errNotAHost   = errors.New("a SQLite file has no user and no port; write sqlite:///path/to/file.db")
	errFileNUL    = errors.New("the file's name has a NUL character, %00; remove it")
	errInMemory   = errors.New("a database in memory is lost when the process ends; use memory://, which is faster")
)

func connectMySQL(s config.Source) (Pool, error) {
	cfg := mysql.NewConfig()
	cfg.DBName = strings.TrimPrefix(s.URL.Path, "/")
	if cfg.DBName == "" || strings.Contains(cfg.DBName, "/") {
		return nil, errNoDatabase
	}
	cfg.User = s.URL.User.Username()
	cfg.Passwd, _ = s.URL.User.Password()
	cfg.Net, cfg.Addr = "tcp", s.URL.Host
	if s.URL.Port() == "" {
		cfg.Addr = net.JoinHostPort(s.URL.Hostname(), "3306")
	}
	if socket := s.Driver.Get("socket"); socket != "" {
		cfg.Net, cfg.Addr = "unix", socket
	}
	cfg.TLSConfig = s.Driver.Get("tls")
	cfg.Timeout = 5 * time.Second
	if timeout := s.Driver.Get("connect_timeout"); timeout != "" {
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
	if s.Silence > 0 {
		cfg.Params["wait_timeout"] = strconv.Itoa(int(s.Silence.Seconds()))
		idle = s.Silence * 2 / 3 // before the server closes it
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	db := stdsql.OpenDB(connector)
	db.SetMaxOpenConns(s.Connections)
	db.SetMaxIdleConns(s.Connections)
	db.SetConnMaxIdleTime(idle)
	return &StdPool{DB: db, owned: true, Tx: &stdsql.TxOptions{Isolation: stdsql.LevelReadCommitted}}, nil
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

// LocateSQLite returns the file of a URL. It returns an error if the file's directory does not exist.
func LocateSQLite(u *url.URL) (string, error) {
	path, err := sqlitePath(u)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() { //nolint:gosec // the operator chooses the path
		return "", fmt.Errorf("the directory of %s is missing; create it, or write sqlite:///path for an absolute path and sqlite:path for one relative to the working directory", path)
	}
	return path, nil
}

func connectSQLite(s config.Source) (Pool, error) {
	if !slices.Contains(stdsql.Drivers(), sqliteDriver) {
		return nil, errNoDriver // before the file is created
	}
	path, err := LocateSQLite(s.URL)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if s.Config.Migrate == sqlconfig.MigrateCheck {
			return nil, &SchemaError{Found: 0, Want: MinSchemaVersion, Prefix: s.Config.Prefix} // opening would create an empty file
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
