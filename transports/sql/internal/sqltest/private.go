package sqltest

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// A Private is a server for one test, which may stop and kill it.
type Private struct {
	URL     string
	Dir     string
	Command []string
	As      *syscall.SysProcAttr
	cmd     *exec.Cmd
}

// NewPrivatePostgres starts a PostgreSQL. It skips the test if there is no such program.
func NewPrivatePostgres(t testing.TB) *Private {
	initdb, postgres := Program(t, "postgres", "initdb"), Program(t, "postgres", "postgres")
	p, port := NewPrivate(t, "postgres"), testenv.FreePort(t)
	data := filepath.Join(p.Dir, "data")
	p.prepare(t, initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	p.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%s/postgres?sslmode=disable", port)
	p.Command = []string{
		postgres, "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "max_connections=300", "-c", "fsync=off",
	}
	p.Start(t)
	t.Cleanup(func() { p.Stop(t, syscall.SIGQUIT) })
	return p
}

// Standby returns a second server with synchronous replication of the first.
func (p *Private) Standby(t testing.TB) *Private {
	backup, port := Program(t, "postgres", "pg_basebackup"), testenv.FreePort(t)
	data := filepath.Join(p.Dir, "standby")
	p.prepare(t, backup, "-d", p.URL, "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync")
	u, err := url.Parse(p.URL)
	require.NoError(t, err)
	s := &Private{Dir: p.Dir, As: p.As, Command: slices.Clone(p.Command)}
	s.Command[slices.Index(s.Command, "-D")+1] = data
	s.Command[slices.Index(s.Command, "-p")+1] = port
	u.Host = "127.0.0.1:" + port
	s.URL = u.String()
	s.Start(t)
	t.Cleanup(func() { s.Stop(t, syscall.SIGQUIT) })
	p.Run(t, `ALTER SYSTEM SET synchronous_standby_names = '*'`)
	p.Run(t, `SELECT pg_reload_conf()`)
	db := OpenDB(t, p.URL)
	defer func() { require.NoError(t, db.Close()) }()
	require.Eventually(t, func() bool {
		return Count(t, db, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == 1
	}, Patience, 20*time.Millisecond)
	return s
}

// NewPrivateMariaDB starts a MariaDB with options. It skips the test if there is no such program.
func NewPrivateMariaDB(t testing.TB, options ...string) *Private {
	install := Program(t, "mariadb", "mariadb-install-db", "mysql_install_db")
	server := Program(t, "mariadb", "mariadbd", "mysqld")
	p, port := NewPrivate(t, "mysql"), testenv.FreePort(t)
	data := filepath.Join(p.Dir, "data")
	// A server deletes all files in its directory of temporary tables when it starts, also those of other servers.
	tmp := "--tmpdir=" + p.Dir
	p.prepare(t, install, "--no-defaults", "--datadir="+data, tmp, "--auth-root-authentication-method=normal")
	p.URL = fmt.Sprintf("mysql://root@127.0.0.1:%s/test", port)
	p.Command = []string{
		server, "--no-defaults", "--datadir=" + data, tmp, "--bind-address=127.0.0.1", "--port=" + port,
		"--socket=" + filepath.Join(p.Dir, "m.sock"), "--pid-file=" + filepath.Join(p.Dir, "m.pid"), "--skip-name-resolve",
		"--max-connections=300", "--innodb-flush-log-at-trx-commit=2",
	}
	p.Command = append(p.Command, options...)
	p.Start(t)
	t.Cleanup(func() { p.Stop(t, syscall.SIGKILL) })
	return p
}

// NewPrivate returns a server with a directory, and with a user if root may not run the server.
func NewPrivate(t testing.TB, account string) *Private {
	top, err := os.MkdirTemp("", "leat-"+account+"-") //nolint:usetesting // another user must access it, and socket paths must be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(top)) })
	p := &Private{Dir: top, As: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	if os.Geteuid() == 0 {
		p.As.Credential = credential(t, account)
		require.NoError(t, os.Chown(top, int(p.As.Credential.Uid), int(p.As.Credential.Gid)))
	}
	return p
}

// Program returns the path of a server's program, which on Debian is not in the PATH. If it does not exist, program skips the
// test, or fails it if the service is required.
func Program(t testing.TB, service string, names ...string) string {
	t.Helper()
	directories, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	version := func(directory string) float64 {
		n, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(directory)), 64)
		return n
	}
	slices.SortFunc(directories, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	directories = append(directories, filepath.SplitList(os.Getenv("PATH"))...)
	directories = append(directories, "/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin")
	for _, name := range names {
		for _, directory := range directories {
			if path, err := exec.LookPath(filepath.Join(directory, name)); err == nil {
				return path
			}
		}
	}
	lacking := fmt.Sprintf("no program %s for a private server; install the server's package", strings.Join(names, " or "))
	if slices.Contains(strings.Split(os.Getenv("LEAT_TEST_REQUIRE"), ","), service) {
		t.Fatalf("LEAT_TEST_REQUIRE names %s, but there is %s", service, lacking)
	}
	t.Skip(lacking)
	return ""
}

func credential(t testing.TB, name string) *syscall.Credential {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	require.NoError(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	require.NoError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (p *Private) prepare(t testing.TB, name string, args ...string) {
	cmd := exec.Command(name, args...) //nolint:gosec // programs of the machine
	cmd.SysProcAttr, cmd.Dir = p.As, p.Dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

// Start starts the server and waits until it accepts connections.
func (p *Private) Start(t testing.TB) {
	p.cmd = exec.Command(p.Command[0], p.Command[1:]...) //nolint:gosec // programs of the machine
	p.cmd.SysProcAttr, p.cmd.Dir = p.As, p.Dir
	require.NoError(t, p.cmd.Start())
	db := OpenDB(t, p.URL)
	defer func() { _ = db.Close() }()
	require.Eventually(t, func() bool { return db.PingContext(context.Background()) == nil }, Patience, 50*time.Millisecond)
}

// Stop stops the server. On PostgreSQL, SIGQUIT is an immediate and SIGINT a fast shutdown; on MariaDB, SIGKILL is a crash.
func (p *Private) Stop(t testing.TB, how syscall.Signal) {
	if p.cmd == nil {
		return
	}
	require.NoError(t, p.cmd.Process.Signal(how))
	_ = p.cmd.Wait() // an error, since it was stopped by a signal
	p.cmd = nil
}

// Run executes a statement.
func (p *Private) Run(t testing.TB, query string, args ...any) {
	t.Helper()
	db := OpenDB(t, p.URL)
	defer func() { _ = db.Close() }()
	Run(t, db, query, args...)
}

// System returns the server as a system.
func (p *Private) System() System { return System{URL: p.URL} }
