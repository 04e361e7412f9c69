package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware"
)

// The handlers: plain functions. What they do here takes no time; how they fail is the point.

// retries is what happens before a failing message goes to the poison queue. The delays are short, because
// this is a demonstration, and none is waited for in process, so that a failing payment holds no worker.
func retries() bus.RetryPolicy {
	return bus.RetryPolicy{
		Delays:    []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond},
		InProcess: -1,
	}
}

// upcasters lift old events before they come to a handler.
func upcasters() []middleware.Upcaster {
	return []middleware.Upcaster{middleware.Upcast(LiftOrderPlaced)}
}

// ReserveStock sees version 2 only: version 1 is lifted before it comes here.
func ReserveStock(context.Context, OrderPlaced) error { return nil }

// BookPayment behaves as the payment's method says.
func BookPayment(ctx context.Context, e OrderPaid) error {
	switch e.Method {
	case "flaky":
		if try := bus.DeliveryFrom(ctx).Try; try <= 2 {
			return fmt.Errorf("the bank does not answer (try %d)", try)
		}
	case "bounced":
		return errors.New("the payment bounced")
	case "panic":
		panic("no account for this payment")
	}
	return nil
}

// Audit sees every message of every order as it is, also those that no other handler understands.
func Audit(context.Context, *message.Message) error { return nil }
