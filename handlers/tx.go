package handlers

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Inbox runs a function in a transaction that also records the message as processed: the Idempotent
// Receiver whose effects happen exactly once, however often the message comes. TX is the kind of
// transaction, such as *sql.Tx.
type Inbox[TX any] interface {
	// Once begins a transaction and records the id, which is the Identity of a [bus.Delivery], for the group in it.
	// Where it is recorded already, fn is not called and seen is true. Otherwise fn runs, and the transaction is
	// committed if it returns nil, and rolled back, the record with it, if not. It blocks while
	// another transaction has recorded the same id and not ended. It may be called concurrently.
	Once(ctx context.Context, group, id string, fn func(ctx context.Context, tx TX) error) (seen bool, err error)
}

var errNoIdentity = errors.New("inbox: the message has neither an id nor a dedup key, so nothing tells it from others")

var errDryRun = errors.New("rolled back, because this is a dry run")

// Tx makes a handler of a function that works in a transaction of the inbox's database. In a [bus.DryRun] the
// transaction is rolled back.
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
			var failed error // of the function; else it is the database that does not work
			tried := false   // it succeeded in a dry run, and is rolled back
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
			if failed == nil && ctx.Err() == nil && (err == nil || d.Try > 1) { // one conflict is nobody's business
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
