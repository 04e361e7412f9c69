package sql_test

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
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// A private is a server for one test, which may stop and kill it.
type private struct {
	url     string
	dir     string
	command []string
	as      *syscall.SysProcAttr
	cmd     *exec.Cmd
}

func newPrivatePostgres(t testing.TB) *private {
	initdb, postgres := program(t, "postgres", "initdb"), program(t, "postgres", "postgres")
	p, port := newPrivate(t, "postgres"), testenv.FreePort(t)
	data := filepath.Join(p.dir, "data")
	p.prepare(t, initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	p.url = fmt.Sprintf("postgres://postgres@127.0.0.1:%s/postgres?sslmode=disable", port)
	p.command = []string{
		postgres, "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "max_connections=300", "-c", "fsync=off",
	}
	p.start(t)
	t.Cleanup(func() { p.stop(t, syscall.SIGQUIT) })
	return p
}

// standby returns a second server with synchronous replication of the first.
func (p *private) standby(t testing.TB) *private {
	backup, port := program(t, "postgres", "pg_basebackup"), testenv.FreePort(t)
	data := filepath.Join(p.dir, "standby")
	p.prepare(t, backup, "-d", p.url, "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync")
	u, err := url.Parse(p.url)
	require.NoError(t, err)
	s := &private{dir: p.dir, as: p.as, command: slices.Clone(p.command)}
	s.command[slices.Index(s.command, "-D")+1] = data
	s.command[slices.Index(s.command, "-p")+1] = port
	u.Host = "127.0.0.1:" + port
	s.url = u.String()
	s.start(t)
	t.Cleanup(func() { s.stop(t, syscall.SIGQUIT) })
	p.run(t, `ALTER SYSTEM SET synchronous_standby_names = '*'`)
	p.run(t, `SELECT pg_reload_conf()`)
	db := sqltest.OpenDB(t, p.url)
	defer func() { require.NoError(t, db.Close()) }()
	require.Eventually(t, func() bool {
		return sqltest.Count(t, db, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == 1
	}, sqltest.Patience, 20*time.Millisecond)
	return s
}

func newPrivateMariaDB(t testing.TB, options ...string) *private {
	install := program(t, "mariadb", "mariadb-install-db", "mysql_install_db")
	server := program(t, "mariadb", "mariadbd", "mysqld")
	p, port := newPrivate(t, "mysql"), testenv.FreePort(t)
	data := filepath.Join(p.dir, "data")
	// A server deletes all files in its directory of temporary tables when it starts, also those of other servers.
	tmp := "--tmpdir=" + p.dir
	p.prepare(t, install, "--no-defaults", "--datadir="+data, tmp, "--auth-root-authentication-method=normal")
	p.url = fmt.Sprintf("mysql://root@127.0.0.1:%s/test", port)
	p.command = []string{
		server, "--no-defaults", "--datadir=" + data, tmp, "--bind-address=127.0.0.1", "--port=" + port,
		"--socket=" + filepath.Join(p.dir, "m.sock"), "--pid-file=" + filepath.Join(p.dir, "m.pid"), "--skip-name-resolve",
		"--max-connections=300", "--innodb-flush-log-at-trx-commit=2",
	}
	p.command = append(p.command, options...)
	p.start(t)
	t.Cleanup(func() { p.stop(t, syscall.SIGKILL) })
	return p
}

// newPrivate returns a server with a directory, and with a user if root may not run the server.
func newPrivate(t testing.TB, account string) *private {
	top, err := os.MkdirTemp("", "leat-"+account+"-") //nolint:usetesting // another user must access it, and socket paths must be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(top)) })
	p := &private{dir: top, as: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	if os.Geteuid() == 0 {
		p.as.Credential = credential(t, account)
		require.NoError(t, os.Chown(top, int(p.as.Credential.Uid), int(p.as.Credential.Gid)))
	}
	return p
}

// program returns the path of a server's program, which on Debian is not in the PATH. If it does not exist, program skips the
// test, or fails it if the service is required.
func program(t testing.TB, service string, names ...string) string {
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

func (p *private) prepare(t testing.TB, name string, args ...string) {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr, cmd.Dir = p.as, p.dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

// start starts the server and waits until it accepts connections.
func (p *private) start(t testing.TB) {
	p.cmd = exec.Command(p.command[0], p.command[1:]...)
	p.cmd.SysProcAttr, p.cmd.Dir = p.as, p.dir
	require.NoError(t, p.cmd.Start())
	db := sqltest.OpenDB(t, p.url)
	defer func() { _ = db.Close() }()
	require.Eventually(t, func() bool { return db.PingContext(context.Background()) == nil }, sqltest.Patience, 50*time.Millisecond)
}

// stop stops the server. On PostgreSQL, SIGQUIT is an immediate and SIGINT a fast shutdown; on MariaDB, SIGKILL is a crash.
func (p *private) stop(t testing.TB, how syscall.Signal) {
	if p.cmd == nil {
		return
	}
	require.NoError(t, p.cmd.Process.Signal(how))
	_ = p.cmd.Wait() // an error, since it was stopped by a signal
	p.cmd = nil
}

func (p *private) run(t testing.TB, query string, args ...any) {
	t.Helper()
	db := sqltest.OpenDB(t, p.url)
	defer func() { _ = db.Close() }()
	sqltest.Run(t, db, query, args...)
}

// system returns the server as a system.
func (p *private) system() system { return system{sqltest.System{URL: p.url}} }
