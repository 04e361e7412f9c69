package middleware

import (
	"context"
	"errors"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"

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
		attrs := []slog.Attr{
			text("topic", p.Topic), slog.Int("messages", len(p.Messages)), slog.Duration("duration", p.Took), failure(p.Err),
		}
		if len(p.Messages) == 1 {
			attrs = append(attrs, identity(p.Messages[0])...)
		}
		l.logger.LogAttrs(ctx, slog.LevelError, "leat: publish failed", attrs...)
	}
}

func (l logObserver) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }

func (l logObserver) Finished(ctx context.Context, d *bus.Delivery, o bus.Observation) {
	level := logLevel(o)
	if !l.logger.Enabled(ctx, level) {
		return
	}
	attrs := append([]slog.Attr{slog.String("group", d.Group), text("topic", d.Topic)}, identity(d.Message)...)
	attrs = append(attrs, slog.Int("attempt", d.Attempt), slog.Int("try", d.Try), slog.Duration("duration", o.Took))
	if o.Err != nil {
		attrs = append(attrs, failure(o.Err))
	}
	if panicked, ok := errors.AsType[*bus.PanicError](o.Err); ok {
		attrs = append(attrs, slog.String("stack", panicked.Stack()))
	}
	l.logger.LogAttrs(ctx, level, "leat: "+string(o.Outcome), attrs...)
}

// identity returns by what a message is found again: in the poison queue, in other lines, in a trace.
func identity(msg *message.Message) []slog.Attr {
	e := bus.EnvelopeOf(msg)
	attrs := []slog.Attr{text("type", e.Type), text("message_id", e.ID), text("correlation_id", e.CorrelationID)}
	if key := driver.PartitionKey(msg); key != "" {
		attrs = append(attrs, text("key", key))
	}
	if trace := driver.TraceID(e.TraceParent); trace != "" {
		attrs = append(attrs, text("trace_id", trace))
	}
	return attrs
}

func failure(err error) slog.Attr { return slog.String("error", driver.OneLine(err.Error(), 1024)) }

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
