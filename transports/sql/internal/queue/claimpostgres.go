package queue

// claimPostgres claims messages in one statement. It skips rows that others are claiming, and stays within the limit of
// bytes. It does not wait for the disk: if a crash of the server undoes a claim, the messages are redelivered.
//
// Two conditions are there for the planner:
//   - The row comparison: with equalities instead, it may read in the order of the primary key, and so all other groups'
//     messages.
//   - "owner = 0": if the table is analyzed while no message is claimed, every owner is 0 in its statistics. With
//     "owner <> ALL" alone the planner then expects one row, ignores the LIMIT, and sorts the group's whole backlog for
//     each claim.
const claimPostgres = `
WITH free AS MATERIALIZED (
	SELECT ctid AS place, id, octet_length(payload) + octet_length(headers) AS size
	FROM {messages}
	WHERE (group_id, state, pos, id) >= (?::integer, {ready}::smallint, 0::bigint, ?::bigint)
	AND (group_id, state, pos, id) < (?::integer, {ready}::smallint, 1::bigint, 0::bigint)
	AND (owner = 0 OR owner <> ALL (ARRAY({live})))
	ORDER BY group_id, state, pos, id LIMIT ? FOR UPDATE SKIP LOCKED
), fits AS (
	SELECT place, sum(size) OVER (ORDER BY id) - size AS before FROM free
)
UPDATE {messages} SET owner = ?, attempt = {more}
WHERE ctid = ANY (ARRAY(SELECT place FROM fits WHERE before < ?))
AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL
RETURNING ` + messageColumns

// headsPostgres skips from key to key in the index, so its cost does not depend on the number of messages per key.
const headsPostgres = `
WITH RECURSIVE walk(pos) AS (
	(SELECT pos FROM {messages} WHERE group_id = ? AND state = {keyed} AND pos > ? ORDER BY pos LIMIT 1)
	UNION ALL
	SELECT (SELECT m.pos FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed} AND m.pos > walk.pos ORDER BY m.pos LIMIT 1)
	FROM walk WHERE walk.pos IS NOT NULL
)
SELECT keys.pos, (SELECT m.id FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = keys.pos ORDER BY m.pos, m.id LIMIT 1)
FROM (SELECT pos FROM walk WHERE pos IS NOT NULL LIMIT ?) keys`

// headsOfPostgres and freeHeadsPostgres start each look-up at its lower bound. They use scalar subqueries, because the planner may
// turn EXISTS into a join that reads all key queues, and LATERAL with a LIMIT and all columns of the index, because after an ANALYZE
// of the empty table it joins by reading all of it.
const (
	headsOfPostgres = `
SELECT l.pos, (SELECT m.id FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = l.pos AND m.id >= l.low ORDER BY m.pos, m.id LIMIT 1)
FROM unnest(?::bigint[], ?::bigint[]) AS l(pos, low)`
	freeHeadsPostgres = `
FROM unnest(?::bigint[], ?::bigint[], ?::bigint[]) AS l(pos, id, low)
CROSS JOIN LATERAL (SELECT * FROM {messages} WHERE group_id = ? AND state = {keyed} AND pos = l.pos AND id = l.id LIMIT 1) m
WHERE (SELECT t.id FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyhead} AND t.pos = m.pos AND t.id >= l.low
	ORDER BY t.pos, t.id LIMIT 1) IS NULL
AND (SELECT t.id FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyed} AND t.pos = m.pos AND t.id >= l.low AND t.id < m.id
	ORDER BY t.pos, t.id LIMIT 1) IS NULL`
)

// insertPostgresRows is a table of any number of messages, with a constant number of arguments.
const insertPostgresRows = `unnest(?::text[], ?::bytea[], ?::bytea[], ?::bigint[], ?::bigint[])
	WITH ORDINALITY AS m(uuid, headers, payload, lane, delay, n)`

// insertOnePostgres inserts one message into an outbox, the most common insert. It is cheaper than the general
// statement, because state and position are known.
const insertOnePostgres = `
INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
SELECT g.id, ?::smallint, ?::bigint, ?::bigint, {now}, ?::text, ?::text, ?::bytea, ?::bytea
FROM {groups} g WHERE g.id = ? AND g.created_at = ?`
