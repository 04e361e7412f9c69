// Package driver is what a message system implements to stand under a leat bus. Services import package bus and do not
// need this one.
//
// A transport implements [Transport], whose promises are written there and tested, for every transport alike, by
// transports/transporttest. A [Receiver] hands out each message as a [Delivery], which the bus settles by its [Settler].
//
// The following interfaces are optional. A transport that wraps another one must pass them on:
//
//   - [HealthChecker]: a Transport that reports its health.
//   - [Inspector]: a Transport that shows groups and topics to operators.
//   - [TxPublisher]: a Transport that publishes in transactions of the caller's.
//   - [BacklogCounter]: a Receiver that counts what waits.
//   - [PoisonWalker]: a PoisonQueue that shows all its messages in one walk.
//   - [ParkNotifier]: a Receiver that reports what begins to be parked.
//
// [Outbox] is no transport: it keeps messages in the service's database until they are safe on one.
package driver
