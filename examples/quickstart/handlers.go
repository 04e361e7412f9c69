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

// The handlers are plain functions. They do nothing but fail in different ways.

// retries returns the retry policy. The delays are short, because this is a demonstration. None of them is
// waited for in process, so that a failing payment blocks no worker.
func retries() bus.RetryPolicy {
	return bus.RetryPolicy{
		Delays:    []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond},
		InProcess: -1,
	}
}

// upcasters returns the upcasters, which convert old events before the handler.
func upcasters() []middleware.Upcaster {
	return []middleware.Upcaster{middleware.Upcast(LiftOrderPlaced)}
}

// ReserveStock gets version 2 only, because version 1 is converted before.
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

// Audit gets every message of every order unchanged, also those that no other handler can decode.
func Audit(context.Context, *message.Message) error { return nil }
