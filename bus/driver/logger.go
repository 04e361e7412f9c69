package driver

import (
	"context"
	"log/slog"
)

// loggerKey is the key of a logger in a context.
type loggerKey struct{}

// WithLogger returns a context that carries the application's logger to the opener of a transport, which has no other
// way to it: a URL names no logger. A nil logger leaves ctx as it is.
func WithLogger(ctx context.Context, logger *slog.Logger) context.Context {
	if logger == nil {
		return ctx
	}
	return context.WithValue(ctx, loggerKey{}, logger)
}

// LoggerFrom returns the logger that [WithLogger] put into ctx, or slog.Default().
func LoggerFrom(ctx context.Context) *slog.Logger {
	if logger, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return logger
	}
	return slog.Default()
}
