// Package memory is the transport inside one process: groups with competing consumers, bounded
// queues that slow their publishers, first in first out, delays, order by key, poison queues, drain.
// It keeps every promise of [bus.Transport] but the durable ones, so that what works in memory works
// on a broker. What waits in it when the process ends is lost.
//
// Its URL is memory://, with these options:
//
//	option      default     what
//	bytes       67108864    bytes that an account of a group may hold, headers included; one message always fits
//	queue       0           messages that an account of a group may hold; 0 means any number
//	poison      268435456   bytes a poison queue may hold, packed; then poisoning fails and
//	                        the message stays
//	unroutable  report      report or error: what Publish does with a message that no group wants
//
// Each group has three accounts: the messages that wait, are handled or wait for their next try; those
// published with a delay; and those parked behind a poisoned message of their key. Publish blocks while
// the account that its message belongs to is full, in one of the groups that want it. So delayed messages
// hold back only those who publish with a delay, and parked ones only those who publish with their key. A
// publisher that waits takes no room in other groups.
//
// A handler that publishes goes before other publishers, and may go over the bounds by a factor of eight:
// handlers that wait for each other's queues would stand still for ever.
package memory
