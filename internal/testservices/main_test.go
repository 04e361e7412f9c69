package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestRun_commandGetsServicesAndKeepsExitCode(t *testing.T) {
	t.Setenv("LEAT_TEST_FAKE_URL", "fake://here")
	s, stdout, stderr := newSession(t)

	code := s.run(nil, []string{"--", "sh", "-c", "echo $LEAT_TEST_FAKE_URL $LEAT_TEST_REQUIRE; exit 7"})

	require.Equal(t, 7, code)
	require.Equal(t, "fake://here fake\n", stdout.String())
	require.Contains(t, stderr.String(), "environment")
}

func TestRun_exitCodesFollowTheShell(t *testing.T) {
	t.Setenv("LEAT_TEST_FAKE_URL", "fake://here")
	for name, c := range map[string]struct {
		args []string
		want int
	}{
		"success":              {[]string{"--", "true"}, 0},
		"killed by a signal":   {[]string{"--", "sh", "-c", "kill -KILL $$"}, 137},
		"no such command":      {[]string{"--", "leat-no-such-command"}, exitNoStart},
		"no command":           {nil, exitUsage},
		"an unknown flag":      {[]string{"-nonsense"}, exitUsage},
		"an unknown service":   {[]string{"-services", "fake,kafka", "--", "true"}, exitUsage},
		"help":                 {[]string{"-help"}, 0},
		"keep, and no command": {[]string{"-keep"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, _ := newSession(t)
			require.Equal(t, c.want, s.run(nil, c.args))
		})
	}
}

func TestRun_missingServiceEndsWithFixes(t *testing.T) {
	s, _, stderr := newSession(t)
	s.table[0].programs = []string{"leat-no-such-server"}

	require.Equal(t, exitMissing, s.run(nil, []string{"-private", "--", "true"}))
	for _, part := range []string{"no fake here", "leat-no-such-server is not installed", "export LEAT_TEST_FAKE_URL=", "fake-server"} {
		require.Contains(t, stderr.String(), part)
	}
}

func TestOptional_runsTheCommandWithoutWhatIsMissing(t *testing.T) {
	t.Setenv("LEAT_TEST_FAKE_URL", "fake://here")
	s, stdout, stderr := newSession(t)
	rare := fake("rare")
	rare.standard, rare.programs = []string{"rare://127.0.0.1:1/"}, []string{"leat-no-such-server"}
	rare.handshake = func(context.Context, string) (string, error) { return "", errors.New("connection refused") }
	s.table = append(s.table, rare)

	require.Equal(t, 7, s.run(nil, []string{"-optional", "--", "sh", "-c", "echo $LEAT_TEST_REQUIRE; exit 7"}))
	require.Equal(t, "fake\n", stdout.String())
	require.Contains(t, stderr.String(), "leat-no-such-server is not installed")
	require.True(t, strings.HasSuffix(stderr.String(), "\ntestservices: without rare: the tests that need them were skipped\n"), stderr)
}

func TestPrivate_endWithTheCommand(t *testing.T) {
	s, stdout, _ := newSession(t)

	require.Zero(t, s.run(nil, []string{"-private", "--", "sh", "-c", "echo $LEAT_TEST_FAKE_URL"}))
	requireGone(t, strings.TrimPrefix(strings.TrimSpace(stdout.String()), "fake://"))
}

func TestPrivate_endIfOneFails(t *testing.T) {
	var directory string
	s, _, stderr := newSession(t)
	broken := s.table[0]
	broken.name = "broken"
	broken.start = func(_ context.Context, box *sandbox) (string, error) {
		directory = box.dir
		return "fake://" + box.dir, box.launch("sh", "-c", "echo out of luck; exit 4")
	}
	broken.handshake = func(context.Context, string) (string, error) { return "", errors.New("connection refused") }
	s.table = append(s.table, broken)

	require.Equal(t, exitMissing, s.run(nil, []string{"-private", "--", "true"}))
	require.Contains(t, stderr.String(), "sh ended before it answered: exit status 4")
	require.Contains(t, stderr.String(), "| out of luck")
	requireGone(t, filepath.Join(filepath.Dir(directory), "fake"))
}

func TestSignal_reachesTheCommandAndStopsServers(t *testing.T) {
	s, _, _ := newSession(t)
	ready := filepath.Join(t.TempDir(), "ready")
	signals := make(chan os.Signal, 1)
	go func() {
		_ = poll(t.Context(), func(context.Context) error { _, err := os.Stat(ready); return err })
		signals <- syscall.SIGTERM
	}()

	// The child of the shell gets the signal too: a shell that waits for it
	// would otherwise not come to its trap. It is the child that says that all
	// is ready, so that the shell has come so far.
	code := s.run(signals, []string{
		"-private", "--", "sh", "-c",
		`trap 'exit 9' TERM; sh -c 'echo $LEAT_TEST_FAKE_URL >$0.new; mv $0.new $0; exec sleep 600' $0`, ready,
	})

	require.Equal(t, 9, code)
	url, err := os.ReadFile(ready)
	require.NoError(t, err)
	requireGone(t, strings.TrimPrefix(strings.TrimSpace(string(url)), "fake://"))
}

func TestSignal_duringStartStopsServers(t *testing.T) {
	var directory string
	s, _, _ := newSession(t)
	signals := make(chan os.Signal, 1)
	s.table[0].handshake = func(_ context.Context, url string) (string, error) {
		directory = strings.TrimPrefix(url, "fake://")
		select {
		case signals <- syscall.SIGINT:
		default:
		}
		return "", errors.New("not yet")
	}

	require.Equal(t, 130, s.run(signals, []string{"-private", "--", "true"}))
	requireGone(t, directory)
}

func TestKeep_exportsServersAndStopCommands(t *testing.T) {
	s, stdout, _ := newSession(t)
	require.Zero(t, s.run(nil, []string{"-private", "-keep"}))
	defer s.close()

	export, stop, _ := strings.Cut(stdout.String(), "\n# to stop: ")
	require.Regexp(t, `^export LEAT_TEST_FAKE_URL='fake:///.*'$`, export)
	require.DirExists(t, s.ground.yard.root)

	require.NoError(t, exec.Command("sh", "-c", strings.Replace(stop, "sleep 3", "sleep 0", 1)).Run())
	requireGone(t, s.ground.yard.root)
	<-s.ground.yard.boxes[0].processes[0].done
}

func TestServices_agreeWithTestenvAndCompose(t *testing.T) {
	readers := map[string]func(testing.TB) string{
		"redis": testenv.Redis, "postgres": testenv.Postgres, "mariadb": testenv.MySQL, "rabbitmq": testenv.RabbitMQ,
	}
	for _, s := range services() {
		require.Contains(t, composeFile, "\n  "+s.name+":\n")
		require.Contains(t, composeFile, `"127.0.0.1::`+s.standardPort()+`"`)
		t.Setenv(s.variable, "x://"+s.name)
		require.Equal(t, "x://"+s.name, readers[s.name](t))
	}
}

// newSession has one service: a "server" that sleeps, at a "URL" that is its
// directory. It uses no container engine and installs nothing.
func newSession(t *testing.T) (s *session, stdout, stderr *bytes.Buffer) {
	t.Setenv("LEAT_TEST_REQUIRE", "")
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	none := func(context.Context, string, ...string) (string, error) { return "", errors.New("none in tests") }
	return &session{
		table: []service{fake("fake")},
		ground: &ground{
			containers: &containers{run: none},
			yard:       &yard{find: findProgram},
			debian:     &debian{run: none},
		},
		stdout: stdout,
		stderr: stderr,
	}, stdout, stderr
}

func fake(name string) service {
	return service{
		name:      name,
		variable:  "LEAT_TEST_" + strings.ToUpper(name) + "_URL",
		standard:  []string{name + "://127.0.0.1:4711/"},
		account:   "nobody",
		programs:  []string{"sleep"},
		debian:    name + "-server",
		handshake: func(context.Context, string) (string, error) { return "1.2.3", nil },
		start: func(_ context.Context, box *sandbox) (string, error) {
			return name + "://" + box.dir, box.launch("sleep", "600")
		},
	}
}

// requireGone checks that the directory of private servers is removed. goleak checks
// that their processes have ended.
func requireGone(t *testing.T, directory string) {
	require.NotEmpty(t, directory)
	require.NoDirExists(t, directory)
}
