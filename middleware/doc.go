// Package middleware provides the steps between a transport and a handler, and the [Stack] that orders them.
//
//	observe ─► poison ─► dedup ─► retry ─► recover ─► timeout ─► version ─► handler
//
// The steps, outermost first, with the reason for the position of each:
//
//	observe  reports each delivery once, with its final outcome
//	poison   moves messages that have failed permanently to the poison queue, and acks them after it has confirmed them
//	dedup    inside poison, so that a failed message releases its claim and an operator's replay is not
//	         taken for a duplicate; outside retry, so that the store is called once per delivery
//	retry    waits for short delays in process, and gives messages with long ones back to the transport
//	recover  turns a panic into an error that retry and poison see
//	timeout  bounds one try, so that the next one begins with a live context
//	version  converts old payloads, so that the handler gets only versions that it takes
//
// Wrap returns an error at start if these are in another order. Your own steps may be anywhere between them:
//
//	stack := middleware.Standard(middleware.Config{}).Before("retry", middleware.Use("tracing", tracing))
//
// Every step is a [message.HandlerMiddleware] and also works in a stock Watermill router. There, poison publishes to a topic
// of your choice, and retry only waits in process.
package middleware
