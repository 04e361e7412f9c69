package handlers

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// An Inbox runs a function in a transaction that also records the message as processed. It is an Idempotent Receiver: the
// effects in the transaction happen exactly once, however often the message is delivered. TX is the type of the transaction,
// such as *sql.Tx.
type Inbox[TX any] interface {
	// Once begins a transaction and records the id, which is the Identity of a [bus.Delivery], for the group. If the id is
	// recorded already, Once does not call fn and returns seen. Otherwise it calls fn, and commits the transaction if fn
	// returns nil, or rolls it back with the record. It blocks while another open transaction has recorded the same id. It may
	// be called concurrently.
	Once(ctx context.Context, group, id string, fn func(ctx context.Context, tx TX) error) (seen bool, err error)
}

var errNoIdentity = errors.New("inbox: the message has neither an id nor a dedup key, so duplicates can't be detected")

var errDryRun = errors.New("rolled back, because this is a dry run")

// Tx returns a handler that calls a function in a transaction of the inbox's database. In a [bus.DryRun] the transaction is
// rolled back. It panics as [Func] does.
func Tx[TX any, T bus.Event](name string, inbox Inbox[TX], fn func(context.Context, TX, T) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	opts = append([]Option{func(h *bus.Handler) { h.Undoable = true }}, opts...)
	return typed(name, opts, func() typedFunc[T] {
		return func(ctx context.Context, _ bus.Encoder, e T) ([]*message.Message, error) {
			d := bus.DeliveryFrom(ctx)
			id := d.Identity()
			if id == "" {
				return nil, bus.Permanent(errNoIdentity)
			}
			var failed error // the function's error; nil if the database has failed
			tried := false   // fn has succeeded in a dry run, and is rolled back
			seen, err := inbox.Once(ctx, d.Group, id, func(ctx context.Context, tx TX) error {
				failed = fn(ctx, tx, e)
				if tried = failed == nil && d.DryRun != nil; tried {
					return errDryRun
				}
				return failed
			})
			if tried {
				return nil, nil
			}
			if failed == nil && ctx.Err() == nil && (err == nil || d.Try > 1) { // a single conflict of transactions is not reported
				d.Degraded("inbox", err)
			}
			if err != nil {
				return nil, fmt.Errorf("inbox: %w", err)
			}
			if seen {
				d.MarkDuplicate()
			}
			return nil, nil
		}
	})
}
