// Package middleware has the steps between a transport and a handler, and the [Stack] that puts them in order.
//
//	observe ─► poison ─► dedup ─► retry ─► recover ─► timeout ─► version ─► handler
//
// Why each step stands where it stands, outermost first:
//
//	observe  sees each delivery once, with its final outcome
//	poison   takes what survived everything inside; acks only what the poison queue has confirmed
//	dedup    inside poison, so that a failed message releases its claim and an operator's replay is not
//	         taken for a duplicate; outside retry, so that the store is asked once per delivery
//	retry    waits for short delays in process and gives long ones back to the transport
//	recover  makes a panic an error that retry and poison can see
//	timeout  bounds one try, so that the next one begins with a live context
//	version  lifts old payloads, so that the handler sees only the version it takes
//
// The stack refuses another order of these at start. Steps of your own may stand anywhere between
// them:
//
//	stack := middleware.Standard(middleware.Config{}).Before("retry", middleware.Use("tracing", tracing))
//
// Every step is a plain [message.HandlerMiddleware] and also works in a stock Watermill router. What
// needs leat's transports then falls back: poison publishes to a topic of your choice, and retry only
// waits in process.
package middleware
