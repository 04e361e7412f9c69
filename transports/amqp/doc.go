// Package amqp is the transport on RabbitMQ (AMQP 0-9-1), without plugins. Every message is confirmed
// by the broker before Publish returns; a group is a durable queue, by default a quorum queue.
//
// Its URL is amqp://user:password@host:5672/vhost, or amqps:// for TLS. The defaults are guest, guest, localhost, 5672 (5671 for
// amqps) and the virtual host "/". For a cluster, list several nodes: amqp://user:password@a:5672,b:5672/vhost. They are tried
// in random order, also when a connection is lost. These are the options:
//
//	option           default       meaning
//	exchange         events        the topic exchange that events are published to
//	queue            quorum        quorum or classic: the type of the queues that leat declares
//	topology         leat          leat, or watermill for the names plain Watermill services use; see also FromWatermill
//	prefetch         0             messages fetched ahead by a group; 0: five for each worker, 20 at least;
//	                               with order by key ten for each, 200 at least
//	unroutable       report        report: a message that no group wants is reported; error: and fails
//	declare          true          false: only check that exchanges and queues are there
//	app_id           program name  the app-id property of published messages
//	name             program name  the connection's name in the broker's own lists
//	heartbeat        10s           how often a silent connection is checked; at least 1s
//	dial_timeout     5s            for one try to connect, TLS and login included
//	connect_timeout  15s           for the first connection, all tries included; LEAT_CONNECT_TIMEOUT replaces the default
//	auth             plain         plain: user and password; external: the client certificate
//	cacert           system's      file with the authorities (PEM) that may have signed the broker's certificate
//	cert, key        none          files with the client's certificate and private key (PEM)
//	server_name      the host      the name that the broker's certificate must have
//	management       see below     URL of the management API, for operators' tools; a service calls it at start only
//
// # On the broker
//
// There is one durable topic exchange; a message's routing key is its topic. Each group has a durable
// queue of its name, bound to the group's topics, and the queues <group>.poison and <group>.retry.*; an ordered
// group also has <group>.keys, <group>.parked.1a and <group>.parked.1b. docs/rabbitmq-in-production.md, a page for those
// who operate the broker, explains each of them. A topic that a group does not subscribe
// to any more stays bound until an operator unbinds it, because another version of the service may still run.
//
// # Delays
//
// The broker moves delayed messages without a plugin: they wait in queues with a time to live and without consumers, and are
// dead-lettered when it has passed. No process receives a message of a group that it does not serve. Delays survive restarts of
// the broker and of all processes; the longest is 48 days. See delay.go for the details.
//
//   - A group has a queue for each delay of its retry policy, such as <group>.retry.30s, and one of a second,
//     <group>.retry.1s. They lead to the group's queue. Such delays have no jitter. If the group's queue was deleted, their
//     messages wait until it is there again. "leat doctor" names those of delays that the policy no longer has.
//   - Other delays are rounded up to seconds, and go through levels of queues that double their time. There are 22 of them
//     for redeliveries, leat.delay.<type>.redeliver.*, which lead to <group>.retry.1s; and 22 for each exchange for what is
//     published with a delay, leat.delay.<type>.publish.*.<exchange>, which lead to the exchange. They are made for the first
//     group of a virtual host, and before the first message with a delay.
//
// A delay ends a few milliseconds late, and later if many messages are due at once: a broker moves some thousand messages a second
// from one queue to the next. A message to which no group is subscribed when its delay ends is dropped without a report, and so is
// one whose exchange was deleted. A redelivery to a group whose queues were all deleted is kept in
// leat.delay.<type>.undelivered.
//
// Quorum queues dead-letter at least once: a message leaves a queue when the next one has confirmed it. That needs RabbitMQ 3.10,
// and on a cluster that was upgraded from an older version the feature flag stream_queue. Classic queues dead-letter at most
// once: messages that are due when a broker crashes may be lost, and a redelivery is lost if its group has no queue when it is
// due. If a queue that is bound to the exchange refuses messages, for instance because a policy limits its length with
// overflow=reject-publish, it blocks messages that are published with a delay to that exchange once 32 of its messages are due.
// Redeliveries of other groups are not blocked.
//
// # Attempts
//
// An attempt is counted in a header when leat redelivers. If a process crashes or a connection is
// lost, the broker redelivers unacked messages and counts that (x-delivery-count), also for messages that were fetched ahead and not
// delivered to a handler. leat corrects the count if the same process gets them again. A message that was in two crashes is
// fetched or handed out alone, so that a message that crashes its process does not raise the counts of others. Classic queues
// only report that a message was delivered before; leat then counts in the header, which moves the message to the end of its
// queue. In an ordered group of classic queues all crashes count as one.
//
// # Handlers that take long
//
// The broker closes a channel whose message is not acked within its consumer_timeout, 30 minutes by default, or from
// RabbitMQ 4.3 on cancels its consumer.
// This is logged with its fix, and the group continues over a new channel. Everything unacked is redelivered, with its
// attempt counted, also the message whose handler still runs: its ack fails then, and the message is
// handled twice, but in an ordered group not at the same time. So give handlers a shorter timeout. The broker counts from
// when it sends a message: a message that was fetched ahead is unacked while it waits for a worker, or in an ordered group for
// earlier messages of its key.
//
// # Order
//
// One process consumes an ordered group, the others wait to take over: its queue has x-single-active-consumer, and the
// active consumer leads. A queue keeps the order of messages that it requeues after a consumer was lost, if all consumers of the
// group have the same prefetch; a change of prefetch can move a few messages once. Each process has a connection for each
// ordered group, over which it also publishes, so ordered groups wait while the broker is out of memory or disk space.
//
// Such a group has three more queues:
//
//   - <group>.keys is a log of the keys with delayed, poisoned or parked messages. It has a few hundred bytes for each such key, and
//     is compacted when another process takes the lead.
//   - <group>.parked.1a and <group>.parked.1b have the messages behind a delayed or poisoned one of their key. They have no consumers,
//     and their messages take no memory of any process. When a key is released, the leader reads one of them from front to end,
//     hands out messages of released keys, and moves the others to the other queue. That takes about 0.1 ms for each message that
//     is parked in the group: 11 s for 100,000, measured on RabbitMQ 4.0.5 with a prototype of the same design.
//
// During a delay of up to two seconds a message stays in the process. A crash loses the delay and the attempt, not the message; a
// close loses neither. For a longer delay the message waits in the broker as above. It returns through the group's queue, behind
// earlier messages, and is handed out first of its key. So does a replayed message. A drop takes effect when the leader gets it
// from the group's queue. At most 100,000 keys can wait; beyond that the group stops consuming, and logs it. Messages behind one
// that is being handled count against the prefetch.
//
// Processes send ticks to the group's queue, messages of which the leader keeps the last one unacked. While the leader has something
// to do and nothing arrives, it sends a tick every five seconds, or every half heartbeat if that is shorter. Apart from that, each
// process sends one every half a minute, and less often if it has many groups: one group's every second, and each group's
// every 15 minutes at least. If a tick does not return to the leader, or a message that the leader has is delivered again, the
// leader ends its connection and begins anew. A process that stood still for longer than one and a half
// heartbeats hands out nothing until it is sure that it still leads. A message that a handler has at that time can't be taken back:
// while another process leads, the old handler may go on for a moment. Where that matters, compare
// [driver.Delivery].Fence, which grows with each change of the leader, where the effect happens.
//
// A process that crashes may leave a message in two queues. Duplicates are recognized by id and body, so messages without an id may
// be handled twice. A message that may have been handed out when the process crashed counts one more attempt.
//
// If a poisoned message was removed by other means than leat, such as a purge of the poison queue, its key stays parked. The same
// may happen if <group>.keys was deleted. A subscription that does not park releases all keys.
//
// Earlier versions used the queues <group>.held and <group>.lead. A process of this version leads only when no process of such a
// version does, and takes over their messages, which are in its memory meanwhile. A downgrade is not possible while messages are
// delayed, poisoned or parked. When no process of an earlier version runs, and <group>.held is empty, delete both queues. The
// next version does not use them.
//
// # Changing the order of a group
//
// Whether a group is ordered is an argument of its queue, which RabbitMQ can't change. A handler with another name
// has another queue. To keep the name, create the queue again:
//
//  1. Stop the publishers of the group's topics. Otherwise messages that are published between steps 4 and 5 reach no group, and
//     their publishers get an UnroutableError.
//  2. Let the group work until "leat groups" shows that it has no waiting messages.
//  3. Stop all processes of the group.
//  4. Delete its queue: rabbitmqctl delete_queue <group>. Leave <group>.poison, <group>.parked.* and
//     <group>.retry.*. With queue=classic, wait until those are empty.
//  5. Start the new version. If the group is not ordered any more, it moves parked messages to the group's queue. Poisoned
//     messages can be replayed before and after.
//  6. If the group is not ordered any more, delete <group>.parked.* and <group>.keys when "leat doctor" shows
//     no fault of the group.
//
// # Policies
//
// This is for operators of the broker. A policy that limits queues applies to leat's queues as well, if its pattern matches them, and
// the lower limit of policy and queue is effective. A client can neither read nor refuse a policy. These limits delete messages that
// leat has promised to keep:
//
//   - delivery-limit: reading a message counts as a delivery. leat rewrites a message of <group>.poison before its fourth delivery, or
//     later if it has just tested that the queue keeps messages that were delivered more often. So a limit of 10 or more deletes
//     none of these, with some room for crashes in between; a lower one may. Messages that the limit removes from a group's queue,
//     <group>.keys and <group>.parked.* are dead-lettered to <group>.poison, except with topology=watermill.
//   - message-ttl and expires: messages of <group>.poison, <group>.retry.* and leat.delay.* are deleted, or arrive early; parked
//     messages are dead-lettered to <group>.poison, and lose their order. A queue without consumers counts as unused, so expires
//     deletes it with its messages. leat can't prevent this.
//   - max-length and max-length-bytes: the oldest messages of those queues are deleted when new ones arrive, or with
//     overflow=reject-publish the new ones are refused, and stay where they were.
//
// So a pattern of a policy with one of these should exclude leat's queues:
//
//	rabbitmqctl set_policy limits '^(?!leat\.)(?!.*\.(poison|keys|parked\..*|retry\..*)$)' '{"delivery-limit":20}' --apply-to queues
//
// A policy without such limits, for instance with queue-leader-locator, may match any of them. If fewer
// messages of a poison queue were requeued than were read, the call returns an error with both numbers.
//
// # Clusters
//
// When nodes of a RabbitMQ cluster lose contact, a queue requeues the unacked messages of consumers on the other side, and redelivers
// them. An unordered group handles those messages twice, at most as many as it fetches ahead. An ordered group begins a new
// session, and no waiting message is lost: within some seconds, or after its next tick if it has nothing to do. If a node hangs, its clients keep the lead until the other nodes
// consider it down, after RabbitMQ's net_ticktime of 60 seconds; ordered groups that they lead stand still for that time.
// Operators can set a lower net_ticktime on all nodes, for instance 15.
//
// # Rights
//
// A service shop, whose groups are shop.*, with the exchange events, needs these rights of its user, and no more:
//
//	configure  ^(events|leat\..*|shop\..*)$
//	write      ^(events|leat\..*|shop\..*|amq\.default)$
//	read       ^(events|leat\..*|shop\..*)$
//
// "leat tail" also needs amq\.gen.* in all three. Whoever may read leat.delay.* can read the delayed messages of all
// services of the virtual host. If services must not read each other's messages, let a user with these rights declare everything, by
// starting each service once and publishing one message with a delay, and run the services with declare=false. A service that consumes then needs
//
//	configure  ^$
//	write      ^(events|leat\.delay\.quorum\.publish\.in\.events|leat\.delay\.quorum\.redeliver\.in|amq\.default)$
//	read       ^shop\..*$
//
// and one that only publishes
//
//	configure  ^$
//	write      ^(events|leat\.delay\.quorum\.publish\.in\.events)$
//	read       ^$
//
// An operator of the groups shop.* needs these for the command leat, and the tag monitoring:
//
//	configure  ^(shop\..*|amq\.gen.*)$
//	write      ^(events|amq\.default|amq\.gen.*)$
//	read       ^(events|shop\..*|amq\.gen.*)$
//
// # Trust
//
// leat has headers of its own: attempts and failures, the topic, the position in an ordered group, the path through the delays, the
// record of a poisoned message. They are trusted only on messages that were published to the default exchange, and deleted from
// all others. So grant the right to write to the default exchange (amq.default) only to users who may write to any queue. A
// service that consumes needs the right, and so do operators and shovels that publish there. Producers do not need it. The header
// leat_instance, by which a bus recognizes its own messages, counts only with a mark that no other process can compute; a client
// that reads a message can publish its mark again, with its id.
//
// # Operators
//
// The command leat reads groups, topics and counts from RabbitMQ's management API, and leat doctor also bindings, arguments, policies,
// alarms and nodes. The default is http://host:15672, or https://host:15671 with amqps, with the user and password of the URL. If
// the API has another address or user, set management=http://user:password%40host:15672
// (%40 is the @). The certificate files are used for https as well. The user needs the tag management; monitoring to
// see alarms and nodes; administrator, before RabbitMQ 4, to see feature flags. Counts are some seconds old. Nothing is declared or
// consumed for any of this ([Config].Operator). The API does not show how a cluster handles partitions.
//
// Without the API, leat groups, leat topics and poison commands without a group fail with an error that has the fix. Poison commands
// with a group, leat publish and leat tail need only AMQP.
//
// Services never use the API. A service's admin endpoint and its metrics show the groups of its process, whose queues they read over
// their own connection. The broker returns how many messages of a group are ready, not how many are delayed or in flight, and
// reading the oldest message would count as an attempt. Of an ordered group's processes it may count only the one that leads. That
// process has all counts of its group, and shows them.
//
// A process declares the bindings of its groups again if they were deleted: within 45 seconds, and with more than 10 groups within
// four and a half seconds for each.
//
// Earlier versions listed each group in the queues leat.groups.quorum and leat.groups.classic. They are not read any more. Delete them
// when no process of such a version runs; leat doctor shows them.
//
// Health has the state of the connections: connected, blocked, reconnects, unroutable messages. A bus shows problems with them in the
// health of its groups, and middleware/prommetrics as the metrics leat_transport_*.
//
// # TLS
//
// Certificate files are read at every connection, so that they can be renewed under a running process.
package amqp
