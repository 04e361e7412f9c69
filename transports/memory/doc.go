// Package memory moves messages inside one process: groups with competing consumers, bounded queues that slow their
// publishers, first in first out, delays, order by key, poison queues, drain. It keeps every promise of [driver.Transport] but the durable ones, so that what works in memory works
// on a broker. What waits in it when the process ends is lost.
//
// Its URL is memory://, with these options:
//
//	option      default     what
//	bytes       67108864    bytes that a capacity of a group may hold, headers included; one message always fits
//	queue       0           messages that a capacity of a group may hold; 0 means any number
//	poison      268435456   bytes a poison queue may hold, packed; then poisoning fails and
//	                        the message stays
//	unroutable  report      report or error: what Publish does with a message that no group wants
//
// Each group has three capacities: for the messages that wait, are handled or wait for their next try; for those published
// with a delay; and for those parked behind a poisoned message of their key. Publish blocks while the capacity that its
// message needs is full in one of the groups that want it. So delayed messages block only those who publish with a delay,
// and parked ones only those who publish with their key. A publisher that waits has acquired nothing in other groups.
//
// A handler that publishes goes before other publishers, and may go over the bounds by a factor of eight:
// handlers that wait for each other's queues would stand still for ever.
//
// To read the code: a Transport (transport.go) finds the groups of a topic. The mutex of a group (group.go) guards all its
// parts: the ready messages, the keys (keyqueues.go), the capacities and the publishers that wait for them (capacity.go), the
// poison queue (poison.go, compact.go), and the delayed messages and waiting calls, whose types are below transports/internal.
// Transport.mu is locked before a group's mutex; Transport.tailing is locked alone.
package memory
