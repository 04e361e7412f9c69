// Package driver defines the interfaces that a transport implements to connect a message system to a leat bus. Services import
// package bus and do not need this one.
//
// A transport implements [Transport], which documents the promises that every transport keeps. The test suite
// transports/transporttest tests them. A [Receiver] returns each message as a [Delivery], which the bus settles by its
// [Settler].
//
// The following interfaces are optional. A transport that wraps another one must pass them on:
//
//   - [HealthChecker]: a Transport that reports its health.
//   - [Inspector]: a Transport that shows groups and topics to operators.
//   - [TxPublisher]: a Transport that publishes in the caller's transactions.
//   - [GroupFinder]: a Transport that reports whether groups exist.
//   - [ConsumerLister]: a Transport that lists the consumers of a group with their programs.
//   - [BacklogCounter]: a Receiver that counts waiting messages.
//   - [PoisonWalker]: a PoisonQueue that iterates over all its messages.
//   - [ParkNotifier]: a Receiver that reports messages that begin to be parked.
//   - [ParkedKeyCounter]: a Receiver that counts the keys that poisoned messages hold back.
//
// An [Outbox] is not a transport: it stores messages in the service's database until they are safe on one.
package driver
