// Package amqp is the transport on RabbitMQ (AMQP 0-9-1), without plugins. Every message is confirmed
// by the broker before Publish returns; a group is a durable queue, by default a quorum queue.
//
// Its URL is amqp://user:password@host:5672/vhost, or amqps:// for TLS. What is left out is guest,
// guest, localhost, 5672 (5671 for amqps) and the virtual host "/". Of a cluster, name several nodes:
// amqp://user:password@a:5672,b:5672/vhost. They are tried in random order, also when a connection is lost. These are
// its options:
//
//	option           default       what
//	exchange         events        the topic exchange that events are published to
//	queue            quorum        quorum or classic: the type of the queues that leat declares
//	topology         leat          leat, or watermill for the names plain Watermill services use
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
//	management       see below     URL of the management API, for operators' tools; services never call it
//
// # On the broker
//
// There is one durable topic exchange; a message's routing key is its topic. Each group has a durable
// queue of its name, bound to the group's topics, and the queues <group>.poison and <group>.retry.*; an ordered
// group also has <group>.keys, <group>.parked.1a and <group>.parked.1b. A topic that a group no
// longer asks for stays bound until somebody unbinds it: another version of the service may still
// run.
//
// # Delays
//
// The broker alone moves delayed messages, without a plugin: they wait in queues with a time to live that nobody consumes,
// and are dead-lettered at their time. No process receives a message of a group that it does not serve. Delays survive
// restarts of the broker and of every process; the longest is 48 days. See delay.go for how it works.
//
//   - A group has a queue for each delay of its retry policy, such as <group>.retry.30s, and one of a second,
//     <group>.retry.1s. They lead to the group's queue. Such delays have no jitter. If the group's queue was deleted, their
//     messages wait until it is there again. "leat doctor" names those of delays that the policy no longer has.
//   - Other delays are rounded up to seconds, and go through levels of queues that double their time. There are 22 of them
//     for redeliveries, leat.delay.<type>.redeliver.*, which lead to <group>.retry.1s; and 22 for each exchange for what is
//     published with a delay, leat.delay.<type>.publish.*.<exchange>, which lead to the exchange. They are made for the first
//     group of a virtual host, and before the first message with a delay.
//
// A delay that ends is late by a few milliseconds, and by more if much is due at once: a broker moves some thousand
// messages a second from one queue to the next. A message that no group wants when its delay ends is dropped, as one that
// is published then, and so is one whose exchange was deleted; nobody is told. A redelivery to a group of which all
// queues were deleted is kept in leat.delay.<type>.undelivered.
//
// Quorum queues pass a message on at least once: it leaves a queue when the next one has confirmed it. That needs
// RabbitMQ 3.10, and on a cluster that was upgraded from an older version the feature flag stream_queue. Classic queues do
// so at most once: what is due in the moment in which a broker crashes may be lost, and a redelivery whose group has no
// queue when it is due is lost. A queue that is bound to the exchange and refuses messages, for instance because a policy
// limits its length with overflow=reject-publish, holds up what is published with a delay to that exchange once 32 of
// its messages are due. Redeliveries of other groups are not held up.
//
// # Attempts
//
// An attempt is counted in a header when leat redelivers. What comes again by itself, because a
// process crashed or a connection was lost, is counted by the broker (x-delivery-count), and so is
// what was fetched ahead and not yet handed out. leat corrects that where the same process gets it
// again, and keeps the count of a message that crashes its process apart from its neighbours': one
// that was in two crashes is fetched or handed out alone. Classic queues only tell that a message
// came before; leat then counts in the header, by which the message goes to the end of its queue. In
// an ordered group of classic queues all crashes count as one.
//
// # Handlers that take long
//
// The broker closes a channel whose message is not acked within its consumer_timeout, 30 minutes by default, or from
// RabbitMQ 4.3 on cancels its consumer.
// The log says so and names the cure; the group goes on over a new channel. All that was out comes again and
// counts a hand-over more, also the message whose handler still runs: its ack fails then, and the message is
// handled twice, but in an ordered group not at the same time. So give handlers a shorter timeout. Ordered
// groups keep what they hold unacked for up to three minutes, delays for twenty seconds; a consumer_timeout below five
// minutes does not work with them.
//
// # Order
//
// One process consumes an ordered group, the others wait to take over: its queue has x-single-active-consumer, and the
// active consumer leads. A queue keeps the order of what it takes back from a lost consumer as long as all consumers of the
// group fetch the same number ahead; a change of prefetch can cost a few messages their place once. Each process has a
// connection for each ordered group, over which it also publishes what follows: while the broker is out of memory or disk,
// ordered groups wait.
//
// Such a group has three more queues:
//
//   - <group>.keys is a log. It says for which keys something is delayed, poisoned or parked. It is a few hundred bytes for
//     each such key, and is written anew when another process takes the lead.
//   - <group>.parked.1a and <group>.parked.1b have what came behind a delayed or poisoned message of its key. Nobody consumes
//     them, and what is there costs no memory of any process. When a key is released, the leader reads one of them from
//     front to end, hands out what is of released keys, and moves the rest to the other one. That takes about 0.1 ms for each
//     message that is parked in the group: 11 s for 100,000, measured on RabbitMQ 4.0.5 with a prototype of the same design.
//
// A delay of up to two seconds is waited for in the process. A crash forgets it and its attempt, not the message; a close
// forgets neither. A longer one is a delay as above, whose message comes back through the group's queue, behind what was
// published before, and is handed out first of its key. So do replays. A drop takes effect when the group has come to it. At
// most 100,000 keys can wait so; beyond that the group stops consuming, and logs it. A key whose message is being handled,
// and does not wait, counts against prefetch with what is behind it.
//
// Every process sends a message to the group's queue every few seconds, a tick, and the leader keeps the last one unacked. So
// a leader knows that the broker still takes it for that; if nothing arrives for a while, or something that it holds is
// delivered again, it ends its connection and begins anew. A process that was stopped for longer than one and a half
// heartbeats hands out nothing until it knows that it still leads. What a handler already has when its process stops can't be
// called back: while another process leads, the old handler may go on for a moment. Where that matters, compare
// [driver.Delivery].Fence, which grows with each change of the leader, in the place where the effect happens.
//
// A process that crashes may leave a message in two places. Which is known by the message's id and body,
// so those without an id may come twice; and a message that may have been handed out when the process
// crashed counts one attempt more.
//
// A key whose poisoned message was taken away by other means than leat, such as a purge of the poison queue, stays parked; a
// subscription that does not park lets everything go.
//
// Versions before kept such groups with <group>.held and <group>.lead. A process of this version leads only when no process
// of those does, and takes over what they held, which is in its memory meanwhile. Going back is not possible while
// something is delayed, poisoned or parked. When no process of the version before runs, and <group>.held is empty, delete both.
// The next version does not look for them.
//
// # Changing the order of a group
//
// Whether a group is ordered is an argument of its queue, which RabbitMQ can't change. A handler with another name
// has another queue. To keep the name, make the queue anew:
//
//  1. Stop whatever publishes to the group's topics. Else what comes between steps 4 and 5 reaches no group, and
//     its publishers get an UnroutableError.
//  2. Let the group work until "leat groups" shows that nothing waits for it.
//  3. Stop all processes of the group.
//  4. Delete its queue: rabbitmqctl delete_queue <group>. Leave <group>.poison, <group>.parked.* and
//     <group>.retry.*. With queue=classic, wait before until those are empty.
//  5. Start the new version. If the group is not ordered any more, it moves what is parked to the group's queue. Poisoned
//     messages can be replayed before and after.
//  6. If the group is not ordered any more, delete <group>.parked.* and <group>.keys when "leat doctor" shows
//     no fault of the group.
//
// # Policies
//
// This is for those who operate the broker. A policy that limits queues applies to leat's queues as well, if its
// pattern matches them, and a limit of a policy that is lower than that of the queue wins. A client can neither see nor
// refuse a policy. These limits delete messages that leat has promised to keep:
//
//   - delivery-limit: to look at messages counts as a delivery. leat writes a message of <group>.poison anew
//     before it was delivered four times, or, if it has just seen that the queue spares one that was delivered more often,
//     before that often. So a limit of 10 or more deletes nothing of these, with some room for crashes in between; a lower
//     one may. A group's own queue, <group>.keys and <group>.parked.* hand what the limit throws out to <group>.poison, but
//     with topology=watermill.
//   - message-ttl and expires: what is in <group>.poison, <group>.retry.* and leat.delay.* when its time is over is
//     deleted, or comes early; what is parked goes to <group>.poison, and its order is lost. A queue that nobody consumes
//     counts as unused, so that expires deletes it with its messages. There is nothing that leat can do about it.
//   - max-length and max-length-bytes: the oldest messages of those queues are deleted when new ones come, or with
//     overflow=reject-publish the new ones are refused, and stay where they were.
//
// So a pattern of a policy with one of these should spare leat's queues:
//
//	rabbitmqctl set_policy limits '^(?!leat\.)(?!.*\.(poison|keys|parked\..*|retry\..*)$)' '{"delivery-limit":20}' --apply-to queues
//
// A policy without such limits, for instance with queue-leader-locator, may match any of them. When a look into
// a poison queue finds that fewer messages came back than were read, it returns an error that says how many.
//
// # Clusters
//
// When nodes of a RabbitMQ cluster lose contact, a queue takes back what consumers on the other side have
// unacked, and sends it again when the contact is back. An unordered group handles those messages twice, at most as
// many as it fetches ahead. An ordered group begins again with what the broker has, within some seconds, and nothing
// that waits is lost. A node that hangs keeps the lead of its clients until the others give it up, after
// RabbitMQ's net_ticktime of 60 seconds: ordered groups that are led from there stand still for so long.
// Operators who want less set net_ticktime lower on all nodes, for instance to 15.
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
// services of the virtual host. If services must not read each other's messages, let a user with these rights make
// everything, by starting each service once and publishing one message with a delay, and run the services with
// declare=false. A service that consumes then needs
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
// # Whom leat believes
//
// leat writes headers for itself: attempts and failures, the topic, the place in an ordered group, the way through the
// delays, the record of a poisoned message. It believes them only on messages that were published to the default
// exchange, and deletes them from all others before anything looks at them. So give nobody the right to write to the default
// exchange (amq.default) who is not to be trusted with every queue: a service that consumes has it, and so have operators
// and shovels that publish there. Producers do not need it. The header leat_instance, by which a bus knows its own
// messages, counts only with a mark that nobody else can make; who reads a message can publish its mark again, with its id.
//
// # What operators see
//
// The command leat asks RabbitMQ's management API for groups, topics and counts, and leat doctor also for bindings,
// arguments, policies, alarms and nodes. It is looked for at http://host:15672, or https://host:15671 with amqps, with the
// user and password of the URL. If it is elsewhere, or has a user of its own, say management=http://user:password%40host:15672
// (%40 is the @). The certificate files are used for https as well. The user needs the tag management; monitoring to
// see alarms and nodes; administrator, before RabbitMQ 4, to see feature flags. Counts are some seconds old.
// Nothing is declared, consumed or held
// for any of this ([Config].Operator). How a cluster handles partitions the API does not tell.
//
// Without the API, leat groups, leat topics and poison verbs that name no group fail and say how to get it. Poison verbs
// that name their group, leat publish and leat tail need AMQP alone.
//
// Services never ask the API. A service's own admin endpoint and its metrics show the groups of its process, and ask the
// broker for their queues over a connection of their own. The broker tells how many messages of a group are ready, not how
// many wait for a time or are handed out, and to look at the oldest would count as an attempt; of an ordered group's
// processes it may count only the one that leads.
//
// Earlier versions left a note of each group in the queues leat.groups.quorum and leat.groups.classic. They are not read
// any more. Delete them when no process of such a version runs; leat doctor shows them.
//
// Health tells of the connections: connected, blocked, reconnects, unroutable messages. A bus shows what is
// wrong with them in the health of its groups, and middleware/prommetrics as the metrics leat_transport_*.
//
// # TLS
//
// Certificate files are read at every connection, so that they can be renewed under a running process.
package amqp
