package middleware

import (
	"context"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Observe returns the step that calls observers at the beginning of each delivery, and at its end with the final outcome. It
// calls the observers of the bus and those given here, which are for stock Watermill routers.
func Observe(extra ...bus.Observer) message.HandlerMiddleware {
	extra = slices.Clone(extra)
	for i, o := range extra {
		extra[i] = bus.GuardObserver(o, nil)
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			d := bus.Attach(msg)
			observers := d.Observers()
			if len(extra) > 0 {
				observers = append(slices.Clip(observers), extra...)
			}
			if len(observers) == 0 {
				return next(msg)
			}
			return observe(observers, d, msg, next)
		}
	}
}

func observe(observers []bus.Observer, d *bus.Delivery, msg *message.Message, next message.HandlerFunc) (produced []*message.Message, err error) {
	began := d.Started()
	ctx := msg.Context()
	for _, o := range observers {
		ctx = o.Started(ctx, d) //nolint:fatcontext // as many layers as observers
	}
	if bus.DeliveryFrom(ctx) != d { // an observer has returned a context that is not derived from ctx
		ctx = d.NewContext(ctx)
	}
	msg.SetContext(ctx)

	returned := false
	defer func() {
		if v := recover(); v != nil { // the stack has no recover step
			d.Panicked()
			err = driver.NewPanicError(v)
		} else if !returned {
			err = bus.ErrGoexit
		}
		finish(ctx, observers, d, bus.Observation{Outcome: d.Outcome(err), Took: time.Since(began), Waited: d.Waited(), Err: reason(d, err)})
	}()
	produced, err = next(msg)
	returned = true
	return produced, err
}

func finish(ctx context.Context, observers []bus.Observer, d *bus.Delivery, o bus.Observation) {
	for _, observer := range slices.Backward(observers) {
		observer.Finished(ctx, d, o)
	}
}

// reason returns why a delivery was not handled. The error of a poisoned one is nil here, so its cause is returned.
func reason(d *bus.Delivery, err error) error {
	if err == nil {
		return d.Cause()
	}
	return err
}
