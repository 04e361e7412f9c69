package sql_test

import (
	stdsql "database/sql"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// makeVersion3 creates the tables of the last release without JSON headers.
func (s system) makeVersion3(t testing.TB, db *stdsql.DB) {
	script, err := sql.MigrationSQL(s.Config, 0)
	require.NoError(t, err)
	for statement := range strings.SplitSeq(script, ";\n\n") {
		if strings.Contains(statement, "leat_states") {
			return
		}
		sqltest.Run(t, db, statement)
	}
}

// insert inserts a message for a group, with any headers.
func (s system) insert(t testing.TB, db *stdsql.DB, group string, state, queue int, uuid string, headers []byte) {
	arg := func(n int) string {
		if s.Config.Dialect == sql.Postgres {
			return fmt.Sprintf("$%d", n)
		}
		return "?"
	}
	sqltest.Run(t, db, fmt.Sprintf(`INSERT INTO %s (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
		SELECT id, %d, %d, %d, 0, 'order.paid.v1', '%s', %s, '{}' FROM %s WHERE name = '%s'`,
		s.Table("messages"), state, queue, queue, uuid, arg(1), s.Table("groups"), group), headers)
}

// headersOf returns the column headers of a message.
func (s system) headersOf(t testing.TB, db *stdsql.DB, uuid string) (headers string) {
	var text []byte
	row := db.QueryRowContext(t.Context(), fmt.Sprintf("SELECT headers FROM %s WHERE uuid = '%s'", s.Table("messages"), uuid))
	require.NoError(t, row.Scan(&text))
	return string(text)
}

// TestHeaders_areWrittenAsTheTablesAreOld checks that headers are written as lines until leat migrate up, for processes of the
// previous release. Processes that started before and after the migration must read each other's headers.
func TestHeaders_areWrittenAsTheTablesAreOld(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx, db := sqltest.Context(t), s.DB(t)
		s.makeVersion3(t, db)
		first := s.Start(t)
		version, err := sql.MigrationStatus(ctx, db, s.Config)
		require.NoError(t, err)
		require.Equal(t, 3, version, "opening goes no further than it must")
		firstFeed, err := first.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)

		headers := message.Metadata{"a=b": "é\n\\", "bytes": "\x00\xff", driver.HeaderPartitionKey: "key"}
		s.insert(t, db, "shop.ledger", 0, 0, "old", []byte("a\\=b=é\\n\\\\\nbytes=\x00\xff\nce_partitionkey=key\n"))
		d := sqltest.Next(t, firstFeed, sqltest.Patience)
		require.Equal(t, headers, d.Message.Metadata)
		require.NoError(t, d.Settler.GiveBack(0))

		publish := func(transport driver.Transport, uuid string) string {
			msg := message.NewMessage(uuid, nil)
			msg.Metadata = maps.Clone(headers)
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", msg))
			return s.headersOf(t, db, uuid)
		}
		require.True(t, strings.HasSuffix(publish(first, "by first"), "\n"))
		d = sqltest.Next(t, firstFeed, sqltest.Patience)
		for d.Message.UUID != "old" {
			require.NoError(t, d.Settler.GiveBack(0))
			d = sqltest.Next(t, firstFeed, sqltest.Patience)
		}
		require.NoError(t, d.Settler.Poison(ctx, driver.Fault{Text: "test"}))
		require.True(t, strings.HasSuffix(s.headersOf(t, db, "old"), "\n"))

		require.NoError(t, sql.Migrate(ctx, db, s.Config))
		second := s.Start(t)
		require.True(t, strings.HasSuffix(publish(first, "by first later"), "\n"), "until it is restarted")
		require.True(t, strings.HasPrefix(publish(second, "by second"), "{"))
		list, err := second.PoisonQueue("shop.ledger").List(ctx, "", 10)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "test", list[0].Fault.Text)
		_, err = second.PoisonQueue("shop.ledger").Replay(ctx, list[0].ID)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(s.headersOf(t, db, "old"), "{"))

		seen := make(map[string]bool)
		for range 4 {
			d := sqltest.Next(t, firstFeed, sqltest.Patience)
			require.Equal(t, headers, d.Message.Metadata, d.Message.UUID)
			seen[d.Message.UUID] = true
			require.NoError(t, d.Settler.GiveBack(time.Hour))
		}
		require.Len(t, seen, 4)
		require.NoError(t, firstFeed.Close(ctx))
		sqltest.Run(t, db, fmt.Sprintf("UPDATE %s SET pos = 0", s.Table("messages"))) // makes the delayed messages due
		secondFeed, err := second.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		for range 4 {
			d := sqltest.Next(t, secondFeed, sqltest.Patience)
			require.Equal(t, headers, d.Message.Metadata, d.Message.UUID)
			require.NoError(t, d.Settler.Ack())
		}
	})
}

// TestHeaders_canBeQueriedByOperators runs the queries of the documentation.
func TestHeaders_canBeQueriedByOperators(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx, db := sqltest.Context(t), s.DB(t)
		transport := s.Start(t)
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.NoError(t, feed.Close(ctx))
		msg := message.NewMessage("m", nil)
		msg.Metadata = message.Metadata{driver.HeaderPartitionKey: "Ünï \"key\"\n", "bytes": "\x00"}
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", msg))
		query := map[sql.Dialect]string{
			sql.Postgres: `SELECT convert_from(headers, 'UTF8')::jsonb ->> 'ce_partitionkey' FROM `,
			sql.MySQL:    `SELECT JSON_UNQUOTE(JSON_EXTRACT(CONVERT(headers USING utf8mb4), '$.ce_partitionkey')) FROM `,
			sql.SQLite:   `SELECT json_extract(CAST(headers AS TEXT), '$.ce_partitionkey') FROM `,
		}[s.Config.Dialect]
		var key string
		require.NoError(t, db.QueryRowContext(ctx, query+s.Table("messages")).Scan(&key))
		require.Equal(t, "Ünï \"key\"\n", key)
		var name string
		require.NoError(t, db.QueryRowContext(ctx, fmt.Sprintf("SELECT s.name FROM %s m JOIN %s s ON s.state = m.state", s.Table("messages"), s.Table("states"))).Scan(&name))
		require.Equal(t, "ready", name)
	})
}

// TestHostileHeaders_endInThePoisonQueue checks that messages with invalid headers are poisoned with the reason, and delay no others.
func TestHostileHeaders_endInThePoisonQueue(t *testing.T) {
	hostile := map[string]string{ // and a part of the reason
		`{"a":`:                               "string",
		`{"a":1}`:                             "string",
		`[]`:                                  "object",
		`{"a":"b","a":"c"}`:                   "twice",
		"{\"a\":\"\xff\"}":                    "UTF-8",
		`{"a":"base64:!"}`:                    "base64",
		"no key\n":                            "key=value",
		strings.Repeat(`{"a":`, 1<<18):        "string",
		`{"a":"` + strings.Repeat("b", 1<<20): "no end",
	}
	eachSystem(t, func(t *testing.T, s system) {
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
			ctx, db := sqltest.Context(t), s.DB(t)
			transport := s.Start(t)
			sub := sqltest.Subscription(fmt.Sprintf("shop.ledger%d", order), 4, "order.paid.v1")
			sub.Order, sub.Park = order, order == driver.OrderedByKey
			feed, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			state, n := 0, 0
			if sub.Park {
				state = 4
			}
			for headers := range hostile {
				n++
				s.insert(t, db, sub.Group, state, n*state, "hostile", []byte(headers))
				s.insert(t, db, sub.Group, state, n*state, "good", []byte(`{}`)) // of the same key
			}
			s.insert(t, db, sub.Group, state, 99*state, "good", []byte(`{}`))
			queue := transport.PoisonQueue(sub.Group)
			waitPoisoned := func() (list []driver.PoisonedMessage) {
				require.Eventually(t, func() bool {
					list, err = queue.List(ctx, "", 100)
					return err != nil || len(list) == n
				}, sqltest.Patience, 10*time.Millisecond)
				require.NoError(t, err)
				return list
			}
			handed := make(chan *driver.Delivery)
			go func() { // a call of Next waits, since a receiver claims nothing otherwise
				for {
					d, err := feed.Next(ctx)
					if err != nil {
						close(handed)
						return
					}
					handed <- d
				}
			}()
			good := func(n int) {
				for range n {
					d := <-handed
					require.NotNil(t, d)
					require.Equal(t, "good", d.Message.UUID)
					require.NoError(t, d.Settler.Ack())
				}
			}
			if sub.Park {
				good(1)
			} else {
				good(n + 1)
			}
			var ids []string
			for _, m := range waitPoisoned() {
				require.Equal(t, "order.paid.v1", m.Topic())
				require.Equal(t, sub.Group, m.Fault.Group)
				require.Less(t, len(m.Fault.Text), 1<<10)
				ids = append(ids, m.ID)
			}
			var texts []string
			for _, id := range ids {
				m, err := queue.Get(ctx, id)
				require.NoError(t, err)
				texts = append(texts, m.Fault.Text)
			}
			for _, reason := range hostile {
				require.Contains(t, strings.Join(texts, "\n"), reason)
			}
			replayed, err := queue.Replay(ctx, ids...)
			require.NoError(t, err)
			require.Equal(t, n, replayed)
			ids = nil
			for _, m := range waitPoisoned() { // again
				ids = append(ids, m.ID)
			}
			mended, err := queue.Get(ctx, ids[0])
			require.NoError(t, err)
			mended.Message = message.NewMessage("good", nil)
			mended.Message.Metadata = message.Metadata{driver.HeaderFaultTopic: "order.paid.v1"}
			require.NoError(t, queue.Put(ctx, mended))
			_, err = queue.Replay(ctx, ids[0])
			require.NoError(t, err)
			dropped, err := queue.Drop(ctx, ids[1:]...)
			require.NoError(t, err)
			require.Equal(t, n-1, dropped)
			if sub.Park {
				good(n + 1)
			} else {
				good(1)
			}
		}
	})
}
