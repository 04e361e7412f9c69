package queue

import (
	"context"

	"github.com/leatbus/leat/transports/sql/internal/database"
)

// takenColumns are messageColumns for RETURNING, but without a large payload, and with the payload's size. SQLite keeps what a statement
// returns in memory until the statement ends, beside the two copies of a row that it has while it writes the row.
const takenColumns = "id, state, attempt, first_at, topic, uuid, headers, CASE WHEN length(payload) <= 65536 THEN payload END, length(payload)"

// collectTaken runs a statement that returns takenColumns. It reads the large payloads afterwards, one at a time.
func (cl claims) collectTaken(ctx context.Context, ex database.Executor, query string, args ...any) ([]record, error) {
	var sizes []int
	taken, err := database.Collect(ctx, ex, func(r database.Rows, m *record) error {
		size := 0
		err := r.Scan(&m.id, &m.state, &m.attempt, &m.firstAt, &m.topic, &m.uuid, &m.headers, &m.payload, &size)
		sizes = append(sizes, size)
		return err
	}, query, args...)
	if err != nil {
		return nil, err
	}
	kept := taken[:0]
	for i, m := range taken {
		if len(m.payload) < sizes[i] {
			found, err := database.Collect(ctx, ex, func(r database.Rows, payload *[]byte) error { return r.Scan(payload) },
				cl.SQL(`SELECT payload FROM {messages} WHERE id = ?`), m.id)
			if err != nil {
				return nil, err
			}
			if len(found) == 0 {
				continue // deleted meanwhile, with its group
			}
			m.payload = found[0]
		}
		kept = append(kept, m)
	}
	return kept, nil
}

const claimSQLite = `
UPDATE {messages} SET owner = ?, attempt = {more} WHERE id IN (
	SELECT id FROM (
		SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (
			SELECT id, length(payload) + length(headers) AS size
			FROM {messages} INDEXED BY {queue}
			WHERE group_id = ? AND state = {ready} AND pos = 0 AND id >= ? AND owner NOT IN ({live})
			ORDER BY id LIMIT ?
		)
	) WHERE before < ?
) RETURNING ` + takenColumns

const headsSQLite = `
WITH RECURSIVE walk(pos) AS (
	SELECT min(pos) FROM {messages} WHERE group_id = ? AND state = {keyed} AND pos > ?
	UNION ALL
	SELECT (SELECT min(m.pos) FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed} AND m.pos > walk.pos)
	FROM walk WHERE walk.pos IS NOT NULL
)
SELECT keys.pos, (SELECT min(m.id) FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = keys.pos)
FROM (SELECT pos FROM walk WHERE pos IS NOT NULL LIMIT ?) keys`
