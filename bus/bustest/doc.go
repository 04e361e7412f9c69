// Package bustest is for the tests of services: a bus on the memory transport with the standard stack,
// and questions about what happened on it.
//
//	h := bustest.New(t, handlers.Func("send-receipt", SendReceipt))
//	h.Publish(OrderPaid{OrderID: "42"})
//	h.WaitIdle()
//	h.RequireHandled("send-receipt", 1)
//	bustest.RequirePublished(h, func(e ReceiptSent) bool { return e.OrderID == "42" })
//
// WaitIdle waits for the whole cascade: what handlers publish, retries and redeliveries included. It
// never sleeps. Inside testing/synctest delays pass in no time, so a test can see a message through
// all its tries to the poison queue.
//
// A requirement that fails prints what happened to the messages.
package bustest
