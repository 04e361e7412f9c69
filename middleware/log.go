package middleware

import (
	"context"
	"errors"
	"log/slog"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Log returns an observer that writes one line per delivery that did not go well, and one at debug level
// for each that did. It may be used concurrently. nil means slog.Default().
func Log(logger *slog.Logger) bus.Observer {
	if logger == nil {
		logger = slog.Default()
	}
	return logObserver{logger}
}

type logObserver struct{ logger *slog.Logger }

func (l logObserver) Published(ctx context.Context, p bus.Publication) {
	if p.Err != nil {
		l.logger.LogAttrs(ctx, slog.LevelError, "leat: publish failed",
			text("topic", p.Topic), slog.Int("messages", len(p.Messages)), slog.Any("err", p.Err))
	}
}

func (l logObserver) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }

func (l logObserver) Finished(ctx context.Context, d *bus.Delivery, o bus.Observation) {
	level := logLevel(o)
	if !l.logger.Enabled(ctx, level) {
		return
	}
	e := bus.EnvelopeOf(d.Message)
	attrs := []slog.Attr{
		slog.String("group", d.Group), text("type", e.Type), text("message_id", e.ID),
		text("correlation_id", e.CorrelationID), slog.Int("attempt", d.Attempt), slog.Int("try", d.Try),
		slog.Duration("took", o.Took),
	}
	if o.Err != nil {
		attrs = append(attrs, slog.String("err", driver.OneLine(o.Err.Error(), 1024)))
	}
	if panicked, ok := errors.AsType[*bus.PanicError](o.Err); ok {
		attrs = append(attrs, slog.String("stack", panicked.Stack()))
	}
	l.logger.LogAttrs(ctx, level, "leat: "+string(o.Outcome), attrs...)
}

// maxAttrBytes bounds what a log line takes from one header of a message.
const maxAttrBytes = 256

// text returns an attribute that a message's producer has chosen: one line of valid UTF-8, and bounded.
func text(key, value string) slog.Attr { return slog.String(key, driver.OneLine(value, maxAttrBytes)) }

// logLevel returns Error for what a person must look at, and Warn for what mends itself.
func logLevel(o bus.Observation) slog.Level {
	switch o.Outcome {
	case bus.Poisoned:
		return slog.LevelError
	case bus.Redelivered, bus.Discarded:
		if r, ok := errors.AsType[*bus.Redelivery](o.Err); ok && r.Uncounted { // nothing has failed, or the health tells it
			return slog.LevelDebug
		}
		return slog.LevelWarn
	case bus.Interrupted:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

func (logObserver) BreakerChanged(bus.BreakerChange) {}
