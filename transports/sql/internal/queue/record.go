package queue

import "github.com/leatbus/leat/transports/sql/internal/database"

// A record is a row of {messages}.
type record struct {
	id      int64
	state   database.State
	attempt int
	firstAt int64
	topic   string
	uuid    string
	headers []byte
	payload []byte
	fence   int64 // the group's fencing number when it was claimed
}

const messageColumns = "id, state, attempt, first_at, topic, uuid, headers, payload"

func scanRecord(r database.Rows, m *record) error {
	return r.Scan(&m.id, &m.state, &m.attempt, &m.firstAt, &m.topic, &m.uuid, &m.headers, &m.payload)
}
