package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContainers_startAndStop(t *testing.T) {
	engine := &fakeEngine{answers: map[string]string{
		"podman info": "", "podman compose version": "",
		"up -d --wait a b":           "",
		"port a 4711":                "127.0.0.1:40001\n",
		"port b 4711":                "127.0.0.1:40002\n",
		"down --volumes --timeout 0": "",
	}}
	c := &containers{run: engine.run, project: "p"}

	answers, err := c.fromContainers(t.Context(), []service{fake("a"), fake("b")})

	require.NoError(t, err)
	require.Equal(t, "a://127.0.0.1:40001/", answers[0].url)
	require.Equal(t, "b://127.0.0.1:40002/", answers[1].url)
	require.Equal(t, "podman", answers[0].how)
	require.FileExists(t, c.file)
	require.Equal(t, []string{"podman compose -p p -f " + c.file + " down --volumes; rm " + c.file}, c.stopCommands())

	require.NoError(t, c.close())
	require.NoFileExists(t, c.file)
	require.Contains(t, engine.ran, "podman compose -p p -f "+c.file+" down --volumes --timeout 0")
}

func TestContainers_deadEngineIsARefusal(t *testing.T) {
	c := &containers{run: (&fakeEngine{}).run}
	answers, err := c.fromContainers(t.Context(), []service{fake("a")})
	require.NoError(t, err)
	require.EqualError(t, answers[0].refusal, "docker info: no daemon\npodman info: no daemon")
	require.NoError(t, c.close())
}

func TestContainers_missingImagesAreARefusal(t *testing.T) {
	engine := &fakeEngine{answers: map[string]string{
		"docker info": "", "docker compose version": "", "down --volumes --timeout 0": "",
	}}
	c := &containers{run: engine.run, project: "p"}
	answers, err := c.fromContainers(t.Context(), []service{fake("a")})
	require.NoError(t, err)
	require.EqualError(t, answers[0].refusal, "docker: no daemon")
	require.NoError(t, c.close())
	require.Contains(t, strings.Join(engine.ran, "\n"), " down --volumes")
}

// fakeEngine answers command lines that end in one of its answers' keys.
type fakeEngine struct {
	answers map[string]string
	ran     []string
}

func (e *fakeEngine) run(_ context.Context, program string, args ...string) (string, error) {
	line := program + " " + strings.Join(args, " ")
	for suffix, output := range e.answers {
		if strings.HasSuffix(line, suffix) {
			if !strings.HasPrefix(suffix, "port") {
				e.ran = append(e.ran, line)
			}
			return output, nil
		}
	}
	return "", errors.New("no daemon")
}
