package redisstore

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// SetLogger makes go-redis write its own lines, such as those about connections that fail, to a logger, as warnings. It is
// for the whole process, as go-redis has one logger; by default that writes to the standard error.
func SetLogger(logger *slog.Logger) { redis.SetLogger(clientLog{logger}) }

type clientLog struct{ *slog.Logger }

func (l clientLog) Printf(ctx context.Context, format string, v ...any) {
	l.WarnContext(ctx, "leat: redis client", "text", fmt.Sprintf(format, v...))
}
