// Package bus publishes typed events and routes them to handlers.
//
// A service publishes events and handles them. Both run along one line each, left to right:
//
//	publish:  event ─► envelope ─► encode ─► publish middleware ─► transport
//	consume:  transport ─► observe ─► poison ─► dedup ─► retry ─► recover ─► timeout ─► version ─► decode+validate ─► function
//
// The currency is Watermill's: a message is a [message.Message], a step of the stack is a
// [message.HandlerMiddleware], so every Watermill middleware runs in a leat stack and every
// Watermill Pub/Sub can stand under a bus (see [Watermill], [NewPublisher] and [NewSubscriber]).
//
// [Bus.InTx] publishes in a transaction of the service's own database, with its rows or not at all; see
// [Outbox] for transports that are not that database.
//
// This package holds what every service shares: [Event], [Envelope], [Codec], [Bus], the error
// wrappers a handler steers with ([Permanent], [RetryAfter], [Snooze], [Discard]). The shapes of user functions are in
// package handlers, the steps of the stack in package middleware, the message systems below transports, and what a
// message system must implement in package bus/driver.
//
// In the terms of Enterprise Integration Patterns (Hohpe, Woolf, 2003): a topic is a
// Publish-Subscribe Channel, a group is a set of Competing Consumers, the envelope is an Envelope
// Wrapper, and the poison queue is a Dead Letter Channel.
package bus
