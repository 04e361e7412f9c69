package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestCheck_leavesOutWhatCannotBeHadUnlessInCI(t *testing.T) {
	for name, c := range map[string]struct {
		ci, named, install, compilerHere bool
		wantRan                          []string // without the build of testservices, which comes first
		wantErr, wantOut                 string
	}{
		"with a compiler": {
			compilerHere: true, install: true,
			wantRan: []string{"testservices -optional -- sh -c go -C . test -race " + plainSQLite + " -timeout 40m ./... && go -C sub test -race " + plainSQLite + " -timeout 40m ./..."},
			wantOut: "check: the tests passed, with the race detector\n",
		},
		"without one": {
			install: true,
			wantRan: []string{"testservices -optional -- sh -c go -C . test -timeout 40m ./... && go -C sub test -timeout 40m ./..."},
			wantOut: "check: the tests passed, but without the race detector: no gcc\n" +
				"  it needs a C compiler (on Debian: apt-get install --no-install-recommends gcc libc6-dev)\n",
		},
		"in CI, root on Debian": {
			ci: true, install: true,
			wantRan: []string{
				"apt-get -q update",
				"env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends gcc libc6-dev",
				"testservices -private -- sh -c go -C . test -race " + plainSQLite + " -timeout 40m ./... && go -C sub test -race " + plainSQLite + " -timeout 40m ./...",
			},
			wantOut: "check: the tests passed, with the race detector\n",
		},
		"in CI, with a server of the environment": {
			ci: true, named: true, compilerHere: true,
			wantRan: []string{"testservices -- sh -c go -C . test -race " + plainSQLite + " -timeout 40m ./... && go -C sub test -race " + plainSQLite + " -timeout 40m ./..."},
			wantOut: "check: the tests passed, with the race detector\n",
		},
		"in CI elsewhere": {ci: true, wantErr: "CI=true asks for the race detector, which can't be built: no gcc"},
	} {
		t.Run(name, func(t *testing.T) {
			var ran []string
			var out bytes.Buffer
			check := check{
				ci: c.ci, named: c.named, install: c.install, out: &out, modules: []string{".", "sub"},
				probe: func(context.Context, string) error {
					if c.compilerHere {
						return nil
					}
					return errors.New("no gcc")
				},
				run: func(_ context.Context, program string, args ...string) error {
					ran = append(ran, filepath.Base(program)+" "+strings.Join(args, " "))
					c.compilerHere = c.compilerHere || strings.Contains(ran[len(ran)-1], "install")
					return nil
				},
			}
			err := check.all(t.Context())
			if c.wantErr == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.wantErr)
			}
			require.Regexp(t, "^go build -o .*testservices ./internal/testservices$", ran[0])
			require.Equal(t, c.wantRan, append([]string(nil), ran[1:]...))
			require.Equal(t, c.wantOut, out.String())
		})
	}
}

func TestCheck_failsWithTheTests(t *testing.T) {
	var out bytes.Buffer
	check := check{
		out: &out, modules: []string{"."},
		probe: func(context.Context, string) error { return nil },
		run: func(_ context.Context, program string, _ ...string) error {
			if program == "go" {
				return nil
			}
			return errors.New("exit status 1")
		},
	}
	require.EqualError(t, check.all(t.Context()), "the tests failed: exit status 1")
	ctx, cancel := context.WithCancel(t.Context())
	run := check.run
	check.run = func(ctx context.Context, program string, args ...string) error {
		if program != "go" {
			cancel() // as a signal does
		}
		return run(ctx, program, args...)
	}
	require.EqualError(t, check.all(ctx), "interrupted")
	require.Empty(t, out)
}

func TestModules_areAllOfTheRepository(t *testing.T) {
	found, err := modules(filepath.Join("..", ".."))
	require.NoError(t, err)
	require.Subset(t, found, []string{filepath.Join("..", ".."), filepath.Join("..", "..", "bench", "compare")})
}

func TestNamesServers(t *testing.T) {
	require.True(t, namesServers([]string{"HOME=/root", "LEAT_TEST_REDIS_URL=redis://127.0.0.1"}))
	require.False(t, namesServers([]string{"LEAT_TEST_REDIS_URL=", "LEAT_TEST_REQUIRE=redis", "LEAT_URL=memory://"}))
}
