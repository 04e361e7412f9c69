// Package memory is the transport inside one process: groups with competing consumers, bounded
// queues that slow their publishers, first in first out, delays, order by key, poison queues, drain.
// It keeps every promise of [bus.Transport] but the durable ones, so that what works in memory works
// on a broker. What waits in it when the process ends is lost.
//
// Its URL is memory://, with these options:
//
//	option      default     what
//	queue       1024        messages a group may hold, waiting, delayed and in flight; then Publish blocks
//	bytes       67108864    payload bytes a group may hold; one message always fits
//	poison      268435456   bytes a poison queue may hold, packed; then poisoning fails and
//	                        the message stays. As much may be parked behind poisoned messages; what
//	                        is parked beyond that counts towards the group's bounds
//	unroutable  report      report or error: what Publish does with a message that no group wants
//
// A handler that publishes may go over its groups' bounds by a factor of eight, because handlers
// that wait for each other's queues would stand still for ever.
package memory
