// Package handlers makes handlers of plain functions. Each of its functions makes a [bus.Handler] of a plain function and
// a durable name:
//
//	Func    func(ctx, OrderPaid) error
//	Method  func(*Ledger, ctx, OrderPaid) error, with its receiver
//	Reply   func(ctx, OrderPaid) (ReceiptSent, error): what it returns is published
//	Batch   func(ctx, []OrderPaid) error
//	Tx      func(ctx, tx, OrderPaid) error, in a transaction that knows which messages it has seen
//	Raw     func(ctx, *message.Message) error, on topics and patterns
//	Routes  several of them under one name, each for its own event
//
// The event's Go type decides what is decoded and which topics the group is bound to: every version of
// the event, so that an unknown one is seen and not missed. A payload that does not decode, or that
// the event's Validate method refuses, is permanent: it goes to the poison queue without another try.
package handlers
