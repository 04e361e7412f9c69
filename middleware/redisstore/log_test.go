package redisstore

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSetLogger_writesTheClientsLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &clientLog{logger: slog.New(slog.NewTextHandler(&out, nil))}
		for range 120 { // go-redis at a Redis that is away
			l.Printf(t.Context(), "pool: failed to dial %s", "127.0.0.1:1")
			time.Sleep(time.Second)
		}
		require.Contains(t, out.String(), `level=WARN msg="leat: redis client" text="pool: failed to dial 127.0.0.1:1" unlogged=0`)
		require.Equal(t, 2, strings.Count(out.String(), "level=WARN"), "one a minute")
		require.Contains(t, out.String(), "unlogged=59")
	})
}
