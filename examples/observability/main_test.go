package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"go.yaml.in/yaml/v3"
)

// output returns the standard output of the program.
func output(t *testing.T) *bufio.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	before := os.Stdout
	os.Stdout = w
	t.Cleanup(func() {
		os.Stdout = before
		require.NoError(t, w.Close())
		require.NoError(t, r.Close())
	})
	return bufio.NewReader(r)
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url) //nolint:noctx // the program's own
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	require.Equal(t, http.StatusOK, response.StatusCode)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

func TestExample_servesMetricsTracesAndConsole(t *testing.T) {
	t.Setenv("ADDRESS", "127.0.0.1:0")
	out := output(t)
	spans := tracetest.NewInMemoryExporter()
	var registry *prometheus.Registry
	app := fxtest.New(t, fx.NopLogger, options(), fx.Populate(&registry), fx.Decorate(func(*sdk.TracerProvider) *sdk.TracerProvider {
		return sdk.NewTracerProvider(sdk.WithSyncer(spans))
	}))
	app.RequireStart()
	defer app.RequireStop()
	urls := make(map[string]string)
	for range 2 {
		line, err := out.ReadString('\n')
		require.NoError(t, err)
		name, url, _ := strings.Cut(strings.TrimSpace(line), "  ")
		urls[name] = url
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.Contains(c, get(t, urls["metrics"]), `leat_deliveries_total{group="observability.send-receipt",outcome="handled",topic="order.paid.v1"}`)
	}, 5*time.Minute, 20*time.Millisecond)
	require.Contains(t, get(t, urls["metrics"]), "leat_group_waiting_messages")
	require.Contains(t, get(t, urls["console"]), "observability.charge")

	// The console changes queues, so it is for this machine only, even if the metrics are for others.
	foreign, err := http.NewRequest(http.MethodGet, urls["console"], nil) //nolint:noctx // the program's own
	require.NoError(t, err)
	foreign.Host = "shop.example"
	response, err := http.DefaultClient.Do(foreign)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusForbidden, response.StatusCode)

	// One trace from the order to its receipt.
	byTrace := make(map[string][]string)
	for _, s := range spans.GetSpans() {
		byTrace[s.SpanContext.TraceID().String()] = append(byTrace[s.SpanContext.TraceID().String()], s.Name)
	}
	found := false
	for _, names := range byTrace {
		found = found || len(names) >= 4
	}
	require.True(t, found, "send, process, send, process: %v", byTrace)
}

// TestCompose_mountsWhatIsThere checks that the mounted files exist and have the right type.
func TestCompose_mountsWhatIsThere(t *testing.T) {
	text, err := os.ReadFile("compose.yaml")
	require.NoError(t, err)
	var compose struct {
		Services map[string]struct {
			Image   string
			Volumes []string
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &compose))
	require.Len(t, compose.Services, 3)
	for name, s := range compose.Services {
		require.Regexp(t, `^[a-z/]+:v?[0-9.]+$`, s.Image, name)
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			require.FileExists(t, filepath.FromSlash(from), name)
		}
	}
	for _, file := range []string{"prometheus.yml", "grafana/datasources/leat.yaml", "grafana/dashboards/leat.yaml"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var content map[string]any
		require.NoError(t, yaml.Unmarshal(text, &content), file)
	}
}
