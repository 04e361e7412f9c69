package driver

import (
	"context"
	"log/slog"
)

// loggerKey is the key of a logger in a context.
type loggerKey struct{}

// WithLogger returns a context that carries the application's logger to the function that opens a transport: a URL can't
// contain it. If logger is nil, WithLogger returns ctx.
func WithLogger(ctx context.Context, logger *slog.Logger) context.Context {
	if logger == nil {
		return ctx
	}
	return context.WithValue(ctx, loggerKey{}, logger)
}

// LoggerFrom returns the logger of [WithLogger] in ctx, else slog.Default().
func LoggerFrom(ctx context.Context) *slog.Logger {
	if logger, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return logger
	}
	return slog.Default()
}
