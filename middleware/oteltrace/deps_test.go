package oteltrace_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who does not import this package links nothing of OpenTelemetry.
func TestServicesWithoutTracing_linkNoOpenTelemetry(t *testing.T) {
	list := func(pkg string) string {
		deps, err := exec.Command("go", "list", "-deps", "github.com/leatbus/leat/"+pkg).Output()
		require.NoError(t, err)
		return string(deps)
	}
	for _, pkg := range []string{"examples/hello", "examples/outbox", "cmd/leat", "fxmodule/..."} {
		require.NotContains(t, list(pkg), "opentelemetry", pkg)
	}
	deps := list("middleware/oteltrace")
	require.Contains(t, deps, "go.opentelemetry.io/otel/trace")
	require.NotContains(t, deps, "go.opentelemetry.io/otel/sdk", "the SDK is the application's")
}
