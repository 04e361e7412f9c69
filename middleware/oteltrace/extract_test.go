package oteltrace

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus/driver"
)

// Extract is W3C's, as OpenTelemetry reads it. (Versions of the format after 00 are not there yet.)
func FuzzExtract_agreesWithOpenTelemetry(f *testing.F) {
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, parent := range []string{
		"", "00", "00-" + traceID + "-" + spanID + "-00", "00-" + traceID + "-" + spanID + "-01", "00-" + traceID + "-" + spanID + "-03",
		"00-" + traceID + "-" + spanID + "-04", "00-" + traceID + "-" + spanID + "-0f", "00-" + traceID + "-" + spanID + "-11", "00-" + traceID + "-" + spanID + "-01-x",
		"00-" + traceID + "_" + spanID + "-01", "00-0AF7651916cd43dd8448eb211c80319c-" + spanID + "-01", "00-00000000000000000000000000000000-" + spanID + "-01",
		"00-" + traceID + "-0000000000000000-01", "01_" + traceID + "-" + spanID + "-01", "00-0af7651916cd43dd-448eb211c80319c-" + spanID + "-01",
	} {
		f.Add(parent, "vendor=1")
	}
	f.Add("00-"+traceID+"-"+spanID+"-01", "=")
	f.Fuzz(func(t *testing.T, parent, state string) {
		if len(parent) > 2 && parent[:2] != "00" || len(parent) > parentLen { // OpenTelemetry lets a "-" stand at the end
			return
		}
		msg := message.NewMessage("id", nil)
		msg.Metadata[driver.HeaderTraceParent], msg.Metadata[driver.HeaderTraceState] = parent, state
		want := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier(msg)))
		got := extract(msg)
		require.Equal(t, want.IsValid(), got.IsValid(), "%q", parent)
		if want.IsValid() {
			require.True(t, want.Equal(got), "%q: %v, not %v", parent, got, want)
		}
	})
}
