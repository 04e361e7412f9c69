package redisstore

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSetLogger_writesTheClientsLines(t *testing.T) {
	var out bytes.Buffer
	clientLog{slog.New(slog.NewTextHandler(&out, nil))}.Printf(t.Context(), "pool: failed to dial %s", "127.0.0.1:1")
	require.Contains(t, out.String(), `level=WARN msg="leat: redis client" text="pool: failed to dial 127.0.0.1:1"`)
}
