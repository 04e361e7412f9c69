// Package memory implements a transport inside one process. It has groups with competing consumers, bounded queues that block
// their publishers, delays, order by key and poison queues. It keeps every promise of [driver.Transport] except durability, so
// that a service that works on it also works on a broker. Messages that wait when the process ends are lost.
//
// Its URL is memory://, with these options:
//
//	option      default     what
//	bytes       67108864    bytes per capacity of a group, headers included; one message always fits
//	queue       0           messages per capacity of a group; 0 means any number
//	poison      268435456   bytes per poison queue, in compact form; if it is full, poisoning fails and
//	                        the message is redelivered
//	unroutable  report      report or error: what Publish returns for a message that no group has subscribed to
//
// Each group has three capacities: for messages that wait, are handled or wait for their next try; for messages that were
// published with a delay; and for messages that are parked behind a poisoned message of their key. Publish blocks while the
// capacity that its message needs is full in one of its groups. So delayed messages block only publishers of delayed messages,
// and parked messages only publishers of the same key. A publisher that waits has acquired nothing in other groups.
//
// A handler that publishes goes before other publishers, and may exceed the bounds by a factor of eight. Otherwise handlers that
// publish to each other's groups could block for ever.
//
// How to read the code: a Transport (transport.go) finds the groups of a topic. The mutex of a group (group.go) guards all its
// parts: the ready messages, the keys (keyqueues.go), the capacities and the publishers that wait for them (capacity.go), the
// poison queue (poison.go, compact.go), and the delayed messages and waiting calls, whose types are in transports/internal.
// Transport.mu is locked before a group's mutex. Transport.tailing is locked alone.
package memory
