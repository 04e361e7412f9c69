// Package sql is leat's transport over a database: PostgreSQL, MySQL, MariaDB, or a SQLite file. All
// groups share the same tables, and a group is a queue in them. A new topic or group adds rows, not tables.
//
// # How it works
//
// Publish runs one statement: it finds the groups that subscribe to the topic, by name or by pattern, and
// inserts a row for each. Concurrent publishers of one process share a commit. A receiver claims rows in
// batches by writing its consumer's id into them (with SKIP LOCKED; SQLite has one writer anyway). It claims
// as many as its workers wait for, and more only while they keep up. Each receiver has one lease, a row that it
// renews three times per lease time. So a handler may run for hours, and no transaction or connection is held
// meanwhile. Acks are deletes, in batches. The messages of a process that died are redelivered when
// its lease has expired, and the attempt counts.
//
// With [bus.OrderedByKey], each key has a queue. Only the first message of a queue can be claimed. Until that
// message is settled for good, no other message of its queue is delivered by any process; other queues go on.
// With [bus.Subscription].Park, a queue also stops behind a poisoned message, which then has a row in leat_holds.
// A replay, a drop or the end of the retention removes that row in the same commit. A replayed message keeps
// its position.
//
// All times are by the database's clock, so a wrong clock of a process does no harm. A message that is
// published for a later time is stored with the delay from now.
//
// # Outbox and inbox
//
// [Bus.InTx] publishes in the user's transaction. If the bus's transport uses the database of that
// transaction, the messages are inserted for their groups directly. Otherwise an [outbox.Outbox] stores them in these
// tables, in a group of its own. Its relay is a consumer of that group: it publishes the messages in batches to
// the bus's transport, those of one key in order, and acks the ones that the transport has accepted. Leases,
// any number of relays, order by key, late commits, delays and the poison queue work as in every group. An
// [inbox.Inbox] is for the consuming side: the handler's transaction also records the message, so that its effects
// happen once.
//
// The transaction itself sends no notification: a NOTIFY in it would serialize all commits of the
// database behind one lock. Instead, the publishing process polls for the message at once and then ever less
// often until it is committed. On PostgreSQL it also sends a NOTIFY, after which other processes do the same.
//
// If a relay dies, or hangs past its lease, messages that were published and not acked are published
// again by another relay. The first copies of a key's messages are in order; the inbox or the dedup
// step drops the duplicates.
//
// # Options
//
//	option          default   what
//	prefix          leat_     prefix of the tables' names
//	schema                    PostgreSQL: the schema of the tables; "" means the first of the search path
//	migrate         auto      auto creates and migrates the tables; check fails if they are missing or old
//	unroutable      report    report or error: what Publish does with a message that has no group
//	lease           30s       how long after a process dies its messages are redelivered
//	prefetch        1000      how many undelivered messages a receiver may buffer
//	poll            25ms      how often an idle process polls for messages;
//	                          at least 250ms if PostgreSQL's notifications arrive
//	keep_handled              how long handled messages are kept; by default they are deleted at once
//	keep_poisoned             how long poisoned messages are kept; by default until somebody drops them
//	wait            15s       how long opening waits for a server that is starting
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
// In transaction mode, set default_query_exec_mode=exec in the URL, or QueryExecModeExec in the configuration of
// your pool: a prepared statement exists on one server connection, and the pooler may run the next statement on
// another one. Notifications do not arrive through the pooler; processes detect that and poll as often as the
// option poll says. A pooler rejects the option search_path; use schema.
//
// # Rights
//
// With migrate=auto the user needs the right to create tables, once. With migrate=check, on tables that
// somebody else has created (leat migrate print, [MigrationSQL]), the rights below are enough. MySQL and MariaDB
// need one GRANT for each table:
//
//	GRANT USAGE ON SCHEMA … TO service;                                       -- PostgreSQL
//	GRANT SELECT, INSERT, UPDATE, DELETE ON leat_messages, leat_holds, leat_consumers TO service;
//	GRANT SELECT, INSERT, UPDATE ON leat_groups, leat_subscriptions, leat_turns TO service;
//	GRANT SELECT, INSERT, DELETE ON leat_inbox TO service;
//	GRANT SELECT ON leat_migrations TO service;
//	GRANT USAGE, SELECT ON leat_messages_id_seq, leat_groups_id_seq TO service; -- PostgreSQL
//
// leat groups rm also needs the right to DELETE from leat_groups, leat_subscriptions and leat_turns.
//
// # Versions of the tables
//
// Opening with migrate=auto creates the tables, or migrates older ones to the version that this release needs. Newer
// versions may not be readable by the previous release. leat migrate up (or [Migrate]) migrates to them; run it when no
// process of an older release is left. Until then this release writes what the older one can read.
//
//	version  since then
//	4        headers are written as JSON, by processes that start later; leat_states names the states
//
// # Reading the tables
//
// Headers are a JSON object of strings. A string that is not valid UTF-8, or contains a NUL, is written as base64:
// followed by its bytes in base64.
//
//	SELECT convert_from(headers, 'UTF8')::jsonb ->> 'ce_type' FROM leat_messages                      -- PostgreSQL
//	SELECT JSON_UNQUOTE(JSON_EXTRACT(CONVERT(headers USING utf8mb4), '$.ce_type')) FROM leat_messages -- MySQL, MariaDB
//	SELECT json_extract(CAST(headers AS TEXT), '$.ce_type') FROM leat_messages                        -- SQLite
//	SELECT g.name, s.name, count(*) FROM leat_messages m JOIN leat_groups g ON g.id = m.group_id
//	  JOIN leat_states s ON s.state = m.state GROUP BY g.name, s.name
//
// A message whose headers can't be decoded is moved to the poison queue with the error. In statements, the number of a
// state is followed by its name in a comment.
//
// Groups and Topics run queries; counting a million messages takes half a second. A tail creates a temporary
// group, named leat-tail.…, which Groups does not return. It needs no more rights than a service has. If its
// process is killed, other processes remove the group within minutes. While a tail runs, messages of its
// pattern that no other group subscribes to are not reported as unroutable.
//
// # Limits
//
// A crash of the server may undo claims of its last half second, so that other consumers get messages
// that a handler is still processing. If a connection breaks during a commit, Publish retries, and the
// message may be stored twice. Use the dedup step for both kinds of duplicates.
//
// On MySQL and MariaDB, a host that vanishes without closing its connections keeps the locks of its open transactions
// until the server closes the connections: after 30 s for connections that Open makes. On your own pool, the server's
// wait_timeout applies, 8 hours by default; set wait_timeout=60 in its DSN, and SetConnMaxIdleTime below it.
//
// A transaction at REPEATABLE READ or SERIALIZABLE publishes to the groups that it sees. A group that was created after its
// first statement gets nothing of it, and if there is no other group, the publish is unroutable. At READ COMMITTED,
// PostgreSQL's default, each publish sees the groups of that time. Let consumers subscribe before publishers are rolled out.
//
// On MySQL and MariaDB, a user's transaction that has published at REPEATABLE READ locks the
// subscriptions that it has read. A consumer that starts with a new group or a new topic waits until the transaction
// ends; existing consumers and publishers do not wait. At READ COMMITTED nothing waits.
//
// A group without consumers keeps its messages and its topics until an operator deletes it with leat groups rm.
//
// [Bus.InTx]: https://pkg.go.dev/github.com/leatbus/leat/bus#Bus.InTx
// [outbox.Outbox]: https://pkg.go.dev/github.com/leatbus/leat/transports/sql/outbox#Outbox
// [inbox.Inbox]: https://pkg.go.dev/github.com/leatbus/leat/transports/sql/inbox#Inbox
package sql
