// Package ordered makes the decisions of an ordered consumer group on a broker that has plain queues.
//
// A transport promises that the messages of a key are handled in the order of their publishing, also past a message
// that waits for its redelivery, and past one that is poisoned, if the group parks. A message is parked when it waits
// behind a poisoned or delayed one of its key; other keys go on. (Elsewhere "parking lot" is a name for a dead-letter
// queue. Here the poison queue has the messages that failed, and the parked queues those that wait behind them.)
//
// The package does not use a broker. A [Takeover], and then a [Machine], has methods for events, which take the time, and returns
// the effects that the caller must carry out. Tags are opaque. Messages are given back to the broker only in a takeover. The rest
// is done by a transport's adapter; see "What the adapter must do".
//
// # Design
//
// The group's queue has a single active consumer, and that one leads. A message is unacked no longer than its handler runs, or for
// a short wait. Messages that wait longer are copied elsewhere, and a small log has their keys. While nothing is released, parked
// messages cost nothing: no consumer, no unacked message, nothing to read at a takeover.
//
//   - A message that has to wait for long, or is poisoned, is copied to a delay or to the poison queue, under a name. It
//     is away, and becomes the head of its key. The leader writes this to the log (block).
//   - Later messages of the key are copied to a pair of parked queues. The log has the key and the pair (park).
//   - When the head is in the group's queue again, with its name, it runs first of its key. When it is handled, the leader
//     writes this to the log (done), and the key is released.
//   - A pass reads the pair, hands out messages of released keys, and moves all others to the other side of the pair (turn).
//     When it finds no message of a key, the key is open again (open).
//
// The states of a key:
//
//	            short wait
//	             ┌────┐
//	             │    ▼                long wait, poison: copy, block
//	          ┌──────────┐ ──────────────────────────────────────────► ┌───────────────┐ ◄─┐
//	────────► │   open   │                                             │    blocked    │   │ the head fails again:
//	          │          │ ◄───────────────┐                ┌────────► │ followers are │   │ copy, block
//	          └──────────┘ done, and       │                │          │ parked (park) │ ──┘
//	             ▲         nothing is parked                │          └───────────────┘
//	             │                         └───────────────────────────────────┤
//	             │ open: a pass has                         │ a parked         │ done, or dropped:
//	             │ read all of it         ┌──────────────┐  │ message fails    │ something is parked
//	             └─────────────────────── │   draining   │ ─┘                  │
//	                                      │ (passes)     │ ◄───────────────────┘
//	                                      └──────────────┘
//
// Files: name, record, state (the log); key, memory, budget (the messages of a session); takeover, leader (who leads).
// These would also serve a transport with random access. Only parked and pass are for queues: how messages are parked and read
// again. machine has the events, effect the effects, session what the parts of a machine share.
//
// # Invariants
//
//  1. A message that a leader has acked in the group's queue was handled, or its copy and the record that refers to it were
//     confirmed before.
//  2. A message is away before the record of that (block) is written. The record is confirmed before the message is acked, before
//     anything is parked behind it, and before it runs again. The record that it is done is confirmed before the returned message
//     is acked. The same holds for a second delivery: if a record is why it has no effect, the record is confirmed first.
//  3. A parked copy counts if the log has its key in that pair since an epoch that is not later than the copy's, and if it was
//     appended after the turn to its side, or moved there by a pass. Any other is a duplicate, and is dropped: its writer did not
//     lead any more and could not ack the original. If the log was lost, all copies count, because a duplicate is better than a loss.
//  4. The messages on the other side of a pair come before those on the current side. A message leaves its side when it was
//     handled, or when it is confirmed on the other side, behind all messages that were before it.
//  5. There is one pass for each turn, and one turn for each fence. If a fence has returned, what was confirmed before it was sent is
//     valid for any later leader.
//  6. No follower is parked past a message of its key that is unacked in the group's queue and not in the log.
//  7. An epoch is claimed only by a session to which the group's queue has delivered after it had read the log, and the
//     claim is void if another session has claimed one in between. So if a record is void, so are its writer's later acks in
//     the group's queue.
//  8. A leader has something unacked in the group's queue at any time. So if it loses the queue, the next one sees a
//     redelivery, and so does the first if it gets the queue back; then it steps down.
//  9. At most one message of a key is out in a process, over all of its sessions. The process remembers the messages that it
//     has handled, and acks them when they are redelivered.
//
// Each delivery has the epoch as a fencing number. It grows with each session that leads, also after the log was deleted. For a few
// ticks two processes may deliver messages of a key, if the nodes of the broker lost
// contact or one process stood still: the order of the first deliveries holds, later repeats are possible, and those
// of the one that was replaced have the lower number.
//
// # Failures
//
//	what happens                              what follows                                              handled again
//	the leader is killed                      the queue gives back what was out; the log says the rest  what was out
//	… between a copy and its block            the original runs; no key waits for the copy              1
//	… between a block and the ack             the original has the print of what is away, and is acked  0
//	… between a parked copy and its ack       it is parked twice; the second is dropped or handled      1
//	… in a pass                               both sides have messages; a pass moves all, another reads 0
//	nodes lose contact, two lead for a while  the acks and records of the first are void; it steps down what both had
//	the broker takes back and redelivers      the session ends                                          0, with ids
//	acks in a parked queue are lost           what is older than the turn is void                       0
//	a process stands still                    nothing is handed out before a fence has returned         0
//	a policy deletes parked messages          they are in the poison queue; the order is lost           0
//	a policy deletes the log                  all keys are released, all that is parked counts; the order is lost some
//	… and the queue was taken back before     a dropped import may block its key, if the group parks        0
//	an operator replays twice, or drops       a head that is done is acked                              0
//	a message has no id                       it is not recognized after a crash                        1
//
// # What the adapter must do
//
// Queues, all durable, and quorum where the broker has them, with a delivery limit out of reach. Declare them once in
// a process, not at each reconnect. For group g:
//
//	g               x-single-active-consumer, dead letters to g.poison (as before)
//	g.poison        as before
//	g.keys          the log; dead letters to g.poison; no other arguments
//	g.parked.1a     a pair of parked queues; likewise; up to Takeover.Pairs pairs, of which
//	g.parked.1b     earlier processes may have declared more than Config.Pairs
//
// Fields of a message. On the wire they are headers; trust them only on messages that came through the default
// exchange. The application's key, its id and its body are what they are; a parked copy keeps its topic.
//
//	leat-head     Message.Head, text               leat-seq     Message.Seq      Name.String, ParseName
//	leat-note     Message.Control, text            leat-stamp   Message.Stamp    likewise
//	leat-repeat   Message.Redelivered, if true     leat-name    Message.Name     likewise
//
// Key is the partition key, or a digest of a long one; for strict order one constant, also for messages without a key; ""
// for a message without a key in a group ordered by key. Print is a cryptographic hash of the id and the body, zero without an id, and
// must be the same for a copy as for its original. Redelivered is the broker's flag, or leat-repeat.
//
// A session:
//
//  1. One connection, used for nothing else: all consumers and all publishings of the session, in one channel per
//     consumer and one with confirms for publishing. No publishing is repeated over another channel: if one fails, is
//     nacked or can't be routed, end the session. Confirmed takes the highest op up to which all are confirmed.
//  2. Consume g with Config.Prefetch, the same in all processes. Config.Held is less by at least 4. The broker's
//     global prefetch is not used. Also with strict order Prefetch is at least 8: the machine hands out one at a time.
//  3. Publish a tick to g, with a unique id and Config.Process as its leat-head: at once, and again after each Config.Idle,
//     while the session does not lead.
//  4. At the first delivery from g, consume g.keys exclusively with unlimited prefetch; if that is refused, try again
//     every 50 ms or so, and end the session after 30 s. Then NewTakeover; pass it the deliveries of g so far, in order,
//     and each later one, and each message of g.keys. Carry out its effects. Return is
//     basic.nack with requeue of that one message; the next delivery has another tag. Remember the tags
//     of what is read from g.keys while Compacts is false.
//  5. When the takeover is Ready: declare all pairs passively. If one has a consumer, wait, up to 30 s. The counts are
//     those of messages. Declare g passively, and pass on all that has arrived before that returns: then all that the
//     last leader had is here. Ack the remembered tags of g.keys, and no others; cancel its consumer and close its
//     channel. Call New.
//  6. Call Effects after each event and carry all out, in order. Call Advance at Next, and at least each Tick/2.
//
// A session that ends, for whatever reason: close the connection, call Machine.Close with the tags of the messages that
// workers have, and begin anew, with a new connection and the same Memory. Workers of the old session go on to call
// Handled, Failed and Poisoned of the old machine; after each, carry out the effects of the current one too. Settling
// such a message returns an error to the worker.
//
// What the effects mean:
//
//	Deliver     put the tag at the end of the ready list; hand out from it only while MayDeliver, asked each time. A
//	            message that was in crashes is handed out alone, as now. Attempts, failures and crashes are
//	            the adapter's: it writes them into copies, and derives crashes from the broker's count of deliveries.
//	Ack         ack in the channel that delivered it. A Poisoned call returns when its tag is acked.
//	Copy        publish the message with its headers; of those above, exactly the ones in the effect. ToDelay: through
//	            the delay queues to g. ToPoison: to g.poison, with the fault. ToParked: to g.parked.<Pair><Side>.
//	Send        publish a control message to g, or to a parked queue: leat-note, leat-name, leat-head, a unique id.
//	Write       publish Record.Encode() to g.keys.
//	StartPass   in a new channel: wait until a passive declaration shows no consumer (up to 30 s, else end the
//	            session); consume exclusively with a prefetch of about 100; then a passive declaration of the other side;
//	            PassStarted, before any delivery of the pass.
//	EndPass     cancel the consumer. Keep the channel open until the next pass of this queue starts, or the session
//	            ends: the broker loses acks of a channel that is closed soon after them.
//	Renew       stop in good order (below) and begin anew; this makes the log short.
//	StepDown    log the reason and end the session.
//	Report      log it, and report it in the health of the group, until it is withdrawn.
//
// To stop in good order: Machine.Stop; let workers settle what they have; wait until Settled, for a limited time;
// Machine.Leave; make sure that the broker has the acks; end the session.
//
// If the process stood still for longer than 1.5 heartbeats (a timer of 200 ms shows it; look at each hand-out), call
// Stalled.
//
// Operators. A replay publishes the poisoned message to g with its leat-head as it is, and removes it from g.poison when
// that is confirmed. A drop publishes the control message drop with its leat-head and key to g, waits for the
// confirmation, and removes it. An import writes the message to g.poison with a new leat-head, such as op-<uuid>, waits
// for the confirmation, and publishes the control message block with the same leat-head and the key to g. All of them
// may be repeated. What they cause is visible when the group has worked off what was in g before.
// Machine.Stats is for the log and for metrics; others count the queues.
//
// Migration from g.held and g.lead. For one release, a session also publishes a token to g.lead, and consumes g only
// while it has one, so that processes of the version before do not lead beside it. Before New, if g.held is there and has
// no consumer: read all of it up to a note of the session, without acking. Ack lower revisions of a place, skipped
// stones with their skips, and notes. Sort the rest by key and place, and call [Takeover.Adopt]: a stone is the control
// message block with Head place-<place>; any other is a message with Due from leat-held-until. An Ack effect acks in
// g.held. From then on, a message of g.poison that has leat-held-place and no leat-head is replayed, dropped and read
// with leat-head place-<place>. A crash repeats the migration; prints find the repeats. Delete g.lead and g.held when
// they are empty. All that is held is in memory meanwhile. There is no way back to the version before while a key is
// known. g keeps its arguments.
//
// A group that is not ordered any more: nobody consumes g.keys and the parked queues; move what is parked to g, pair by
// pair, first the other side, then the side of the last turn record; a side is wrong only in the order.
package ordered
