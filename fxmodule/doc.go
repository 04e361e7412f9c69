// Package fxmodule wires leat into a go.uber.org/fx application:
//
//	fxmodule.Main(
//		fxmodule.Module,                                   // reads LEAT_URL; default memory://
//		fxmodule.Handle("send-receipt", SendReceipt),      // a plain function
//		fxmodule.HandleMethod("ledger", (*Ledger).Record), // a method; *Ledger comes from fx
//	)
//
// Main is fx.New(…).Run() with one line about a start that fails; the module works with either. It provides *bus.Bus, [middleware.Stack], [PublishMiddleware] and [Config], and nothing that
// it does not own: a *slog.Logger and a [middleware.Store] are taken from the application where it has
// them. Everything it does can be done without it, with transports.Open, bus.New and b.Handle.
//
// [Outbox], or LEAT_OUTBOX_URL alone, lets bus.InTx publish in the application's transactions; [Inbox] and
// [HandleTx] run handlers in transactions that also record the message.
//
// Start and stop: the transport is opened when the bus is built. The bus begins to consume after
// everything its handlers depend on has started, and stops before any of that stops. What depends on
// *bus.Bus may publish from its own start to its own stop; on a transport that is not durable,
// publishing ends when the handlers do. The drain keeps within the application's stop timeout. If the
// bus fails after the start, the application is shut down with exit code 1.
//
// Operators: with LEAT_ADMIN the application answers leat's commands over HTTP; see [Config]. With the
// package cli below this one, its own binary has them.
//
// The state of the groups and the transport is shown by [HealthHandler], which answers an orchestrator's probes, and as
// metrics if the application provides a prometheus.Registerer:
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
// Decorate at the root of the application and once: fx allows one decorator a type, and inside of an
// fx.Module it changes only what that module sees.
package fxmodule
