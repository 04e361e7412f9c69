package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// SetLogger makes go-redis log to logger, at level warn, and at most one line a minute: while Redis is away, go-redis writes one for
// each connection that it tries. go-redis has one logger for the whole process, which by default writes to the standard error.
func SetLogger(logger *slog.Logger) { redis.SetLogger(&clientLog{logger: logger}) }

// logPause is how long the lines that follow a line of go-redis are only counted.
const logPause = time.Minute

type clientLog struct {
	logger *slog.Logger

	mu       sync.Mutex
	quiet    time.Time // no line is written until then
	unlogged int       // lines since the last one that was written
}

func (l *clientLog) Printf(ctx context.Context, format string, v ...any) {
	if unlogged, ok := l.next(time.Now()); ok {
		l.logger.WarnContext(ctx, "leat: redis client", "text", fmt.Sprintf(format, v...), "unlogged", unlogged)
	}
}

// next reports whether to write a line, and how many lines were not written before it.
func (l *clientLog) next(now time.Time) (unlogged int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.quiet) {
		l.unlogged++
		return 0, false
	}
	unlogged, l.unlogged, l.quiet = l.unlogged, 0, now.Add(logPause)
	return unlogged, true
}
