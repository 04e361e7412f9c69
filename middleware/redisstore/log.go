package redisstore

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// SetLogger makes go-redis log to logger, at level warn. go-redis has one logger for the whole process, which by default writes
// to the standard error.
func SetLogger(logger *slog.Logger) { redis.SetLogger(clientLog{logger}) }

type clientLog struct{ *slog.Logger }

func (l clientLog) Printf(ctx context.Context, format string, v ...any) {
	l.WarnContext(ctx, "leat: redis client", "text", fmt.Sprintf(format, v...))
}
