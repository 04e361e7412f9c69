package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFreePorts_areDistinct(t *testing.T) {
	ports, err := freePorts(20)
	require.NoError(t, err)
	seen := map[int]bool{}
	for _, port := range ports {
		require.False(t, seen[port])
		seen[port] = true
		listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		require.NoError(t, err)
		require.NoError(t, listener.Close())
	}
}

func TestFindProgram_byAnyName(t *testing.T) {
	path, err := findProgram("leat-no-such-program|sleep")
	require.NoError(t, err)
	require.Equal(t, "sleep", filepath.Base(path))

	_, err = findProgram("leat-no|leat-neither")
	require.EqualError(t, err, "leat-no or leat-neither is not installed")
}

func TestFindProgram_newestVersionFirst(t *testing.T) {
	root := t.TempDir()
	for _, version := range []string{"9.6", "17", "15"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, version, "bin"), 0o755))
	}
	require.Equal(t,
		[]string{filepath.Join(root, "17/bin"), filepath.Join(root, "15/bin"), filepath.Join(root, "9.6/bin")},
		newestFirst(filepath.Join(root, "*/bin")))
}

func TestPrivate_missingProgramsAreARefusal(t *testing.T) {
	yard := &yard{find: func(program string) (string, error) { return "", errors.New(program + " is not installed") }}
	answers, err := yard.fromInstalled(t.Context(), []service{fake("a")})
	require.NoError(t, err)
	require.EqualError(t, answers[0].refusal, "sleep is not installed")
	require.NoError(t, yard.close())
}
