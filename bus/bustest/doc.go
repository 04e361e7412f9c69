// Package bustest tests services: it runs a bus on the memory transport with the standard stack, and checks what happened to
// the messages.
//
//	h := bustest.New(t, handlers.Func("send-receipt", SendReceipt))
//	h.Publish(OrderPaid{OrderID: "42"})
//	h.WaitIdle()
//	h.RequireHandled("send-receipt", 1)
//	bustest.RequirePublished(h, func(e ReceiptSent) bool { return e.OrderID == "42" })
//
// WaitIdle waits until all messages are handled, also those that handlers publish, with all retries and redeliveries. It does
// not poll. Inside testing/synctest delays take no real time, so a test can follow a message through all its tries to the
// poison queue.
//
// A check that fails prints what happened to every message.
package bustest
