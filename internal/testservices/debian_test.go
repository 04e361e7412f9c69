package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const forbid = "#!/bin/sh\nexit 101\n"

func TestDebian_installsWithoutAutostart(t *testing.T) {
	for name, before := range map[string]string{"no policy before": "", "a policy before": "#!/bin/sh\nexit 0\n"} {
		t.Run(name, func(t *testing.T) {
			d, ran := newDebian(t, before, nil)

			answers, err := d.fromPackages(started)(t.Context(), []service{fake("a"), fake("b")})

			require.NoError(t, err)
			require.Len(t, answers, 2)
			require.NoError(t, answers[0].refusal)
			require.Equal(t, []string{"update", "install -y --no-install-recommends a-server b-server"}, *ran)
			requirePolicy(t, d.policy, before)
		})
	}
}

func TestDebian_failedInstallRestoresThePolicy(t *testing.T) {
	const before = "#!/bin/sh\nexit 0\n"
	d, ran := newDebian(t, before, errors.New("no network"))

	answers, err := d.fromPackages(started)(t.Context(), []service{fake("a")})

	require.NoError(t, err)
	require.EqualError(t, answers[0].refusal, "apt-get update: no network")
	require.Equal(t, []string{"update"}, *ran)
	requirePolicy(t, d.policy, before)
}

func TestDebian_interruptWaitsForAptGet(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d, _ := newDebian(t, "", nil)
	_, err := d.fromPackages(started)(ctx, []service{fake("a")})
	require.NoError(t, err, "the fake apt-get fails when its context has ended")
}

func TestDebian_onlyRootInstalls(t *testing.T) {
	for want, d := range map[string]*debian{
		"no apt-get here":    {root: true},
		"apt-get needs root": {aptGet: "/usr/bin/apt-get"},
	} {
		answers, err := d.fromPackages(started)(t.Context(), []service{fake("a")})
		require.NoError(t, err)
		require.EqualError(t, answers[0].refusal, want)
	}
}

// newDebian returns a debian whose apt-get only records its arguments, and checks
// that services may not start meanwhile.
func newDebian(t *testing.T, policy string, failure error) (d *debian, ran *[]string) {
	path := filepath.Join(t.TempDir(), "policy-rc.d")
	if policy != "" {
		require.NoError(t, writeExecutable(path, []byte(policy)))
	}
	ran = new([]string)
	run := func(ctx context.Context, program string, args ...string) (string, error) {
		requirePolicy(t, path, forbid)
		require.Equal(t, "env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120",
			program+" "+strings.Join(args[:5], " "))
		*ran = append(*ran, strings.Join(args[5:], " "))
		return "", errors.Join(ctx.Err(), failure)
	}
	return &debian{run: run, root: true, aptGet: "apt-get", policy: path, progress: io.Discard}, ran
}

func started(_ context.Context, wanted []service) ([]answer, error) {
	return each(wanted, func(service) (answer, error) { return answer{how: "private"}, nil })
}

func requirePolicy(t *testing.T, path, want string) {
	content, err := os.ReadFile(path)
	if want == "" {
		require.ErrorIs(t, err, os.ErrNotExist)
		return
	}
	require.NoError(t, err)
	require.Equal(t, want, string(content))
}
