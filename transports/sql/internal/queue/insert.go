package queue

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A publish is one statement, which finds the groups of the topic and inserts a row for each. Groups are not cached outside of the
// database, so a group that existed when the statement began is not missed.

const (
	insertInto = `
INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
SELECT g.id,
	CASE WHEN m.delay > 0 THEN {delayed} WHEN g.ordering = 2 OR g.ordering = 1 AND m.lane <> 0 THEN {keyed} ELSE {ready} END,
	CASE WHEN m.delay > 0 THEN (SELECT {now}) + m.delay WHEN g.ordering = 1 THEN m.lane ELSE 0 END,
	m.lane, (SELECT {now}), `
	insertFrom = `, m.uuid, m.headers, m.payload
FROM {groups} g CROSS JOIN `
	insertWhere = `
WHERE g.id IN (
	SELECT group_id FROM {subscriptions} WHERE pattern = `
	insertUnion = `
	UNION ALL
	SELECT s.group_id FROM {subscriptions} s JOIN (`
	insertHere = ` AND EXISTS (SELECT 1 FROM {migrations} WHERE version = 1 AND applied_at = ?)`
	insertOne  = `
WHERE g.id = ? AND g.created_at = ?`
	insertOrder = ` ORDER BY m.n`
)

// A routeFilter returns a condition on the groups that get the messages of an insert, and appends its arguments.
type routeFilter func(args []any) (where string, _ []any)

// A publication has the column values of a message to insert.
type publication struct {
	uuid    string
	headers []byte
	payload []byte
	key     int64 // the number of its key queue, for the column lane
	delay   int64 // microseconds from the insert
}

// maxUUID is the size of the column. It is checked here, because some servers truncate longer values.
const maxUUID = 255

var errNUL = errors.New("it is not valid UTF-8, or contains a NUL")

// columnUUID returns the value of the column for a message's UUID: "" if it is too long and also in the headers, as an event's id is.
func columnUUID(msg *message.Message) (string, error) {
	uuid := msg.UUID
	valid := utf8.ValidString(uuid) && strings.IndexByte(uuid, 0) < 0
	switch {
	case valid && len(uuid) <= maxUUID:
		return uuid, nil
	case uuid == msg.Metadata[driver.HeaderID]:
		return "", nil
	case valid:
		return "", fmt.Errorf("message %.32s…: its UUID has %d bytes; at most %d fit", uuid, len(uuid), maxUUID)
	default:
		return "", fmt.Errorf("message UUID %q: %w", uuid, errNUL)
	}
}

// newMessage returns the message of a row.
func newMessage(uuid string, headers message.Metadata, payload []byte) *message.Message {
	if uuid == "" {
		uuid = headers[driver.HeaderID]
	}
	msg := message.NewMessage(uuid, payload)
	msg.Metadata = headers
	return msg
}

func newPublication(s *database.Statements, msg *message.Message) (publication, error) {
	uuid, err := columnUUID(msg)
	if err != nil {
		return publication{}, err
	}
	delay, err := delayOf(msg)
	if err != nil {
		return publication{}, fmt.Errorf("message %s: %w", msg.UUID, err)
	}
	payload := []byte(msg.Payload)
	if payload == nil {
		payload = []byte{} // not NULL
	}
	return publication{
		uuid:    uuid,
		headers: encodeHeaders(msg.Metadata, s.JSON),
		payload: payload,
		key:     keyQueueOf(msg),
		delay:   delay,
	}, nil
}

// delayOf returns the time until the message is due. The due time is by this process's clock, which may differ from the database's.
func delayOf(msg *message.Message) (microseconds int64, err error) {
	due, err := driver.ParseDeliverAt(msg)
	if err != nil {
		return 0, err
	}
	if wait := time.Until(due); wait > 0 {
		return wait.Microseconds() + 1, nil
	}
	return 0, nil
}

// InsertQuery returns the statement that inserts the messages for every group that subscribes to the topic, and its arguments, for any
// driver. There may be up to [MaxInsert] messages.
func InsertQuery(s *database.Statements, topic string, msgs []*message.Message) (query string, args []any, err error) {
	rows, err := publications(s, msgs)
	if err != nil {
		return "", nil, err
	}
	query, args = insert(s, topic, rows, wanted(s, topic))
	return query, args, nil
}

// insert returns the statement that inserts messages of one topic, for any driver.
func insert(s *database.Statements, topic string, msgs []publication, to routeFilter) (query string, args []any) {
	rows := insertRowsOf(s.Name)
	args = make([]any, 0, 5*len(msgs)+8)
	values := make([]string, len(msgs))
	args = append(args, topic)
	for i, m := range msgs {
		values[i] = fmt.Sprintf(rows.values, i+1)
		args = append(args, m.uuid, m.headers, m.payload, m.key, m.delay)
	}
	table := fmt.Sprintf(rows.table, strings.Join(values, rows.separator))
	where, args := to(args)
	return s.Complete(insertInto + textArgument(s) + insertFrom + table + where + insertOrder), args
}

// insertArrays does the same for a driver that supports array arguments: the statement is the same for any number of messages.
func insertArrays(s *database.Statements, topic string, msgs []publication, to routeFilter) (query string, args []any) {
	var (
		uuids    = make([]string, len(msgs))
		headers  = make([][]byte, len(msgs))
		payloads = make([][]byte, len(msgs))
		keys     = make([]int64, len(msgs))
		delays   []int64 // NULL if no message is delayed, the usual case
	)
	for i, m := range msgs {
		uuids[i], headers[i], payloads[i], keys[i] = m.uuid, m.headers, m.payload, m.key
		if m.delay > 0 && delays == nil {
			delays = make([]int64, len(msgs))
		}
		if delays != nil {
			delays[i] = m.delay
		}
	}
	where, args := to([]any{topic, uuids, pgtype.FlatArray[[]byte](headers), pgtype.FlatArray[[]byte](payloads), keys, delays})
	return s.SQL(insertInto + textArgument(s) + insertFrom + insertPostgresRows + where + insertOrder), args
}

// textArgument returns the placeholder of a text argument. PostgreSQL needs its type.
func textArgument(s *database.Statements) string {
	if s.Name == sqlconfig.Postgres {
		return "?::text"
	}
	return "?"
}

// wanted returns the condition on groups that have subscribed to the topic. Its text depends only on the number of the topic's
// segments.
func wanted(s *database.Statements, topic string) routeFilter {
	return func(args []any) (string, []any) { return route(s, topic, args) }
}

// only returns the condition on this one group. It compares the time of creation, in microseconds, so that it matches no group with the
// same id in other tables.
func (g group) only(born int64) routeFilter {
	return func(args []any) (string, []any) { return insertOne, append(args, g.id, born) }
}

func route(s *database.Statements, topic string, args []any) (where string, _ []any) {
	var b strings.Builder
	b.WriteString(insertWhere)
	b.WriteString(textArgument(s))
	b.WriteString(insertUnion)
	args = append(args, topic)
	for i, c := range topicPrefixes(topic) {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&b, "SELECT %d AS depth, %s AS prefix", c.depth, textArgument(s))
		args = append(args, c.text)
	}
	fmt.Fprintf(&b, ") p ON s.depth = p.depth AND p.prefix "+patternOf(s.Name).like+")", "s.matches")
	return b.String(), args
}

// keyQueueOf returns the number of the key queue of a message, 0 for none. It is in the columns lane and, while the message
// waits, pos. Keys that share a number share a queue, which costs them some concurrency and no order.
func keyQueueOf(msg *message.Message) int64 {
	key := driver.PartitionKey(msg)
	if key == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))                                          // never fails
	if queue := int64(h.Sum64()); queue != 0 && queue != math.MinInt64 { //nolint:gosec // any number will do
		return queue
	}
	return 1
}
