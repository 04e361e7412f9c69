// Package fxmodule wires leat into a go.uber.org/fx application:
//
//	fxmodule.Main(
//		fxmodule.Module,                                   // reads LEAT_URL; default memory://
//		fxmodule.Handle("send-receipt", SendReceipt),      // a plain function
//		fxmodule.HandleMethod("ledger", (*Ledger).Record), // a method; *Ledger comes from fx
//	)
//
// Main does what fx.New(…).Run() does, and logs one line if the start fails; the module works with both. The module provides
// *bus.Bus, [middleware.Stack], [PublishMiddleware] and [Config]. It uses a *slog.Logger and a [middleware.Store] of the
// application if there are any. Without the module, use transports.Open, bus.New and b.Handle.
//
// With [Outbox] or LEAT_OUTBOX_URL, bus.InTx publishes in the application's transactions. [Inbox] and [HandleTx] run handlers in
// transactions that also record the message.
//
// Start and stop: the transport is opened when the bus is built. The bus begins to consume after everything that its handlers
// depend on has started, and stops before any of that stops. Components that depend on *bus.Bus may publish from their start to
// their stop; on a transport that is not durable, until the handlers have stopped. The drain does not exceed the application's
// stop timeout. If the bus fails after the start, the application is shut down with exit code 1.
//
// Operators: with LEAT_ADMIN the application serves leat's commands over HTTP; see [Config]. With the package cli below this one,
// the application's own binary has these commands.
//
// [HealthHandler] reports the state of the groups and the transport to an orchestrator's probes. If the application provides a
// prometheus.Registerer, metrics report it as well:
//
//	fxmodule.Observe(prommetrics.New), // what happens to messages
//	fx.Invoke(prommetrics.Health),     // degraded groups; connected, blocked, reconnects, unroutable
//
// The middleware stack is one ordered value, which fx.Decorate edits:
//
//	fx.Decorate(func(s middleware.Stack) middleware.Stack {
//		return s.Before(middleware.StepRetry, middleware.Use("tenant", tenant))
//	})
//
// Use one decorator, at the root of the application: fx allows one per type, and a decorator in an fx.Module changes the stack
// for that module only.
package fxmodule
