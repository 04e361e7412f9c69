// Package sql is the transport over a database: PostgreSQL, MySQL and MariaDB, or a SQLite file. A
// group is a queue in tables that all groups share; nothing is created for a topic or a group but rows.
//
// # How it works
//
// Publish is one statement: it finds the groups that want the topic, patterns too, and gives each a row
// of its own. Publishers of one process that come at the same time share a commit. A feed takes rows in
// batches by marking them with its consumer's id (SKIP LOCKED; SQLite has one writer anyway), as many
// as its workers wait for, and more only while they keep up. The lease is the consumer's, one row for
// each feed, renewed three times in its time; so handlers may run for hours, and no transaction and no
// connection is held meanwhile. Acks are deletes, many at once. What a dead process had taken comes
// again when its lease has run out, with its attempts counted.
//
// With [bus.OrderedByKey], each key has a queue. Only the first message of a queue can be taken,
// by whatever process, and while it is out or waits for its redelivery the queue stands still, and no
// other does. With [bus.Subscription].Park it stands still behind a poisoned message too: a row in leat_holds
// says so. Whoever replays that message, drops it or lets its retention end takes the row away in the same
// commit. A replayed message keeps its place.
//
// Only the database's clock counts. A process whose own is wrong changes nothing; a message that is
// published for a later time is published for a span from now.
//
// # Outbox and inbox
//
// [Bus.InTx] publishes in a transaction of the user's. Where the bus's transport is the database of that
// transaction, this is the publish itself. Else an [Outbox] keeps the messages in these tables, in a
// group of its own, and its relay is that group's consumer: it publishes them in batches to the bus's
// transport, those of a key one after the other, and acks what is safe. So leases, any number of relays,
// order by key, late commits, delays and the poison queue are those of every group. An [Inbox] is the
// other end: a handler's transaction that also records the message, so that its effects happen once.
//
// Nobody is told of a commit by the transaction itself: a NOTIFY in it would make all commits of the
// database queue up behind one lock. The process that wrote a message, and on PostgreSQL the others by a
// NOTIFY afterwards, look for it at once and then ever less often, until it is committed.
//
// A relay that dies, or hangs past its lease, leaves messages that were published and not acked: they are
// published again, by another. The first copies of a key's messages are in their order; the inbox or the
// dedup step leave out the others.
//
// # Options
//
//	option          default   what
//	prefix          leat_     begins the tables' names
//	schema                    PostgreSQL: the schema of the tables; "" is the search path's first
//	migrate         auto      auto makes and alters the tables; check fails where they are missing or old
//	unroutable      report    report or error: what Publish does with a message that no group wants
//	lease           30s       how long the messages of a process that died stay with it
//	prefetch        1000      messages a feed may hold that it has not handed out yet
//	poll            25ms      how often an idle process looks for messages it was not told of;
//	                          at least 250ms where PostgreSQL's notifications arrive
//	keep_handled              how long handled messages stay; they are deleted at once without it
//	keep_poisoned             how long poisoned messages stay; until somebody drops them without it
//	wait            15s       how long opening waits for a server that is just starting
//	connections     12        size of the pool; not for SQLite
//	connect_timeout 5         seconds
//
// PostgreSQL (postgres://, postgresql://) also takes sslmode, sslrootcert, sslcert, sslkey,
// application_name, search_path, target_session_attrs and default_query_exec_mode, as pgx does. It may name
// a primary and its standbys, postgres://one:5432,two:5432/shop?target_session_attrs=read-write. MySQL
// and MariaDB (mysql://, mariadb://) take tls (true, skip-verify, preferred) and socket. SQLite is
// sqlite:///path/to/file.db, or sqlite:file.db for a file in the working directory; the program must import
// package transports/sqlite for its driver.
//
// # Behind pgbouncer
//
// In transaction mode, set default_query_exec_mode=exec in the URL, or QueryExecModeExec in the configuration of a
// pool of yours: prepared statements stay with a server's connection, and the pooler gives the next statement
// another one. Notifications do not arrive there; processes notice that and look as often as poll says. A pooler
// refuses the option search_path; use schema.
//
// # Rights
//
// With migrate=auto the user needs the right to create tables, once. With migrate=check, on tables that
// somebody else has made (leat migrate print, [MigrationSQL]), these are enough. MySQL and MariaDB
// want one GRANT for each table:
//
//	GRANT USAGE ON SCHEMA … TO service;                                       -- PostgreSQL
//	GRANT SELECT, INSERT, UPDATE, DELETE ON leat_messages, leat_holds, leat_consumers TO service;
//	GRANT SELECT, INSERT, UPDATE ON leat_groups, leat_subscriptions, leat_turns TO service;
//	GRANT SELECT, INSERT, DELETE ON leat_inbox TO service;
//	GRANT SELECT ON leat_migrations TO service;
//	GRANT USAGE, SELECT ON leat_messages_id_seq, leat_groups_id_seq TO service; -- PostgreSQL
//
// # Versions of the tables
//
// Opening with migrate=auto makes the tables, or leads older ones to the version that this release needs. What a
// release adds beyond that is not understood by the release before it, and waits for leat migrate up (or [Migrate]), which
// you run once no process of an older release is left. Until then this release writes what the older one reads.
//
//	version  since then
//	4        headers are written as JSON; leat_states names the states. Processes write JSON that start later
//
// # What operators see
//
// Headers are a JSON object of strings. A string that is not valid UTF-8, or has a NUL, is base64: and its bytes in
// base64.
//
//	SELECT convert_from(headers, 'UTF8')::jsonb ->> 'ce_type' FROM leat_messages                      -- PostgreSQL
//	SELECT JSON_UNQUOTE(JSON_EXTRACT(CONVERT(headers USING utf8mb4), '$.ce_type')) FROM leat_messages -- MySQL, MariaDB
//	SELECT json_extract(CAST(headers AS TEXT), '$.ce_type') FROM leat_messages                        -- SQLite
//	SELECT g.name, s.name, count(*) FROM leat_messages m JOIN leat_groups g ON g.id = m.group_id
//	  JOIN leat_states s ON s.state = m.state GROUP BY g.name, s.name
//
// A message whose headers can't be read is in the poison queue, and says why. In statements the number of a state is
// followed by its name in a comment.
//
// Groups and Topics are queries; a count of a million messages takes half a second. A tail is a group of
// its own for as long as somebody looks, named leat-tail.…, which Groups does not show; it needs no more
// rights than a service has, and what a killed one leaves behind is cleared away within minutes. While it
// looks, Publish reports no message of its pattern that no other group wants.
//
// # What it does not promise
//
// A crash of the server may undo claims of its last half second, so that other consumers get messages
// that a handler still works on. Where a connection breaks during a commit, Publish tries again, and the
// message may be there twice. Both are duplicates, which the dedup step is for.
//
// On MySQL and MariaDB, a host that vanishes without closing its connections keeps the locks of what it was just
// doing until the server gives up on it: for 30 s on connections that Open makes. On a pool of yours that is the
// server's wait_timeout, 8 hours by default; set wait_timeout=60 in its DSN, and SetConnMaxIdleTime below it.
//
// On MySQL and MariaDB, a transaction of the user's own that has published at REPEATABLE READ locks what
// it has read of the subscriptions. A consumer that starts with a new group or a new topic waits for its
// end; those that have been there before, and publishers, do not. At READ COMMITTED nobody waits.
//
// A group that nobody consumes any more keeps its messages, and a topic that a group has asked for once
// stays the group's: delete its rows to end that.
//
// [Bus.InTx]: https://pkg.go.dev/github.com/leatbus/leat/bus#Bus.InTx
package sql
