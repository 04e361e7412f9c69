package middleware

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Log returns an observer that logs one line for each delivery: at debug level if the message was handled, else as a warning or
// an error. An event of a type that the handler does not take is at debug level, too: the bus warns of each type once. A nil logger
// means slog.Default(). The observer may be used concurrently.
func Log(logger *slog.Logger) bus.Observer {
	logger = cmp.Or(logger, slog.Default())
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

// identity returns the attributes that identify a message in the poison queue, in other log lines and in a trace.
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

// maxAttrBytes bounds the part of one header of a message in a log line.
const maxAttrBytes = 256

// text returns an attribute with a value that the message's producer has chosen, as one bounded line of valid UTF-8.
func text(key, value string) slog.Attr { return slog.String(key, driver.OneLine(value, maxAttrBytes)) }

// logLevel returns Error for outcomes that need an operator, and Warn for those that don't.
func logLevel(o bus.Observation) slog.Level {
	switch o.Outcome {
	case bus.Poisoned:
		return slog.LevelError
	case bus.Redelivered, bus.Discarded:
		if r, ok := errors.AsType[*bus.Redelivery](o.Err); ok && r.Uncounted { // nothing has failed, or the health reports it
			return slog.LevelDebug
		}
		if _, other := errors.AsType[*bus.OtherEventError](o.Err); other { // the bus logs each type once
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
