// Package handlers makes handlers from plain functions. Each of its functions returns a [bus.Handler] for a durable name and a
// function:
//
//	Func    func(ctx, OrderPaid) error
//	Method  func(*Ledger, ctx, OrderPaid) error, with its receiver
//	Reply   func(ctx, OrderPaid) (ReceiptSent, error), whose result is published
//	Batch   func(ctx, []OrderPaid) error
//	Tx      func(ctx, tx, OrderPaid) error, in a transaction that also records the message as handled
//	Raw     func(ctx, *message.Message) error, on topics and patterns
//	Routes  several of them under one name, each for its own event
//
// The event's Go type determines how payloads are decoded and which topics the group subscribes to: those of all versions of
// the event, so that no unknown version is missed. If a payload can't be decoded, or the event's Validate method returns an
// error, the message goes to the poison queue without another try.
package handlers
