package sql_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

func TestOpen_rejectsInvalidURLs(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{"oracle://host/db", `scheme "oracle"`},
		{"postgres://u:s3cret@host/db?sslmod=disable", `Did you mean "sslmode"`},
		{"postgres://u:s3cret@host/db?prefix=a%22b", "prefix"},
		{"postgres://u:s3cret@host/db?schema=" + strings.Repeat("s", 70), "schema"},
		{"postgres://u:s3cret@host:99999/db", "port"},
		{"postgres://u:s3cret@host/db?sslmode=s3cret", "sslmode"},
		{"postgres://u:s3cret@host/db?migrate=never", "one of auto, check"},
		{"mysql://u:s3cret@host", "names no database"},
		{"mysql://u:s3cret@host/db?schema=x", "unknown option"},
		{"mysql://u:s3cret@host/db?lease=soon", "positive duration"},
		{"sqlite://", "names no file"},
		{"sqlite:////", "names no file"},
		{"sqlite:///tmp/", "names no file"},
		{"sqlite://u:s3cret@host/x.db", "no user"},
		{"sqlite:a%2.db", "%25"},
		{"sqlite:///leat/is/not/here/x.db", "directory of /leat/is/not/here/x.db is missing"},
		{"sqlite::memory:", "memory://"},
		{"sqlite:///x.db?lease=1ms", "at least 1s"},
	} {
		_, err := sqltest.OpenURL(sqltest.Context(t), c.url)
		require.ErrorContains(t, err, c.want, c.url)
		require.NotContains(t, err.Error(), "s3cret", c.url)
	}
}

func TestSQLite_paths(t *testing.T) {
	directory := t.TempDir()
	t.Chdir(directory)
	require.True(t, strings.HasPrefix(directory, "/"))
	for i, c := range []struct{ url, file string }{
		{"sqlite://" + directory + "/three.db", "three.db"},
		{"sqlite:///" + directory + "/four.db", "four.db"},
		{"sqlite:" + directory + "/opaque.db", "opaque.db"},
		{"sqlite:relative.db", "relative.db"},
		{"sqlite:./here.db", "here.db"},
		{"sqlite://./dot.db", "dot.db"},
		{"sqlite:a%20b%25%3F%23.db?prefix=x_", "a b%?#.db"},
		{"sqlite://" + directory + "/a%20b%25%3F%23%26.db", "a b%?#&.db"},
	} {
		transport, err := sqltest.OpenURL(sqltest.Context(t), c.url)
		require.NoError(t, err, c.url)
		sqltest.CloseNow(t, transport)
		require.FileExists(t, filepath.Join(directory, c.file), c.url)
		files, err := filepath.Glob(filepath.Join(directory, "*.db"))
		require.NoError(t, err)
		require.Len(t, files, i+1, "%s makes no other file", c.url)
	}
}

func TestOpen_wrongPasswordFailsAtOnce(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	raw := testenv.WithOption(t, strings.Replace(s.URL, "root@", "leat_nobody:s3cret@", 1), "wait", (2 * sqltest.Patience).String())
	began := time.Now()
	_, err := sqltest.OpenURL(sqltest.Context(t), raw)
	require.ErrorContains(t, err, "Access denied")
	require.NotContains(t, err.Error(), "s3cret")
	require.Less(t, time.Since(began), sqltest.Patience, "the option wait is longer")
}

func TestMigrate_missingTables(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		_, err := sqltest.OpenURL(sqltest.Context(t), testenv.WithOption(t, s.URL, "migrate", "check"))
		var missing *sql.SchemaError
		require.ErrorContains(t, err, "leat migrate up")
		require.ErrorContains(t, err, "are missing")
		require.ErrorAs(t, err, &missing)
		sqltest.CloseNow(t, s.Open(t))
		sqltest.CloseNow(t, s.Open(t, "migrate", "check"))
	})
}

// TestMigrate_printedScriptIsComplete checks that the printed script creates the same tables.
func TestMigrate_printedScriptIsComplete(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		script, err := sql.MigrationSQL(s.Config, 0)
		require.NoError(t, err)
		db := s.DB(t)
		for statement := range strings.SplitSeq(script, ";\n\n") {
			if strings.TrimSpace(statement) != "" {
				sqltest.Run(t, db, statement)
			}
		}
		version, err := sql.MigrationStatus(sqltest.Context(t), db, s.Config)
		require.NoError(t, err)
		require.Equal(t, sql.SchemaVersion, version)
		require.NoError(t, sql.Migrate(sqltest.Context(t), db, s.Config)) // nothing to do
		transport := s.Start(t, "migrate", "check")
		_, err = transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.>"))
		require.NoError(t, err)
	})
}

func TestMigrate_longNamesDoNotCollide(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		ctx := sqltest.Context(t)
		long := strings.Repeat("a", driver.MaxTopicBytes-2)
		group := strings.Repeat("g", driver.MaxGroupBytes-1)
		var feeds []driver.Receiver
		for _, last := range []string{"a", "A"} {
			feed, err := transport.Subscribe(ctx, sqltest.Subscription(group+last, 1, long+"."+last))
			require.NoError(t, err)
			feeds = append(feeds, feed)
		}
		for i, last := range []string{"a", "A"} {
			require.NoError(t, transport.Publish(ctx, long+"."+last, sqltest.NewMessage("x", last)))
			d := sqltest.Next(t, feeds[i], sqltest.Patience)
			require.Equal(t, last, driver.MessageID(d.Message))
			require.Equal(t, long+"."+last, d.Topic)
			require.NoError(t, d.Settler.Ack())
		}
	})
}

// TestPublish_unroutableIsAnError checks the option unroutable=error.
func TestPublish_unroutableIsAnError(t *testing.T) {
	t.Parallel()
	transport := onSQLite(t).Start(t, "unroutable", "error")
	err := transport.Publish(sqltest.Context(t), "order.paid.v1", sqltest.NewMessage("x", "m"))
	var unroutable *driver.UnroutableError
	require.ErrorAs(t, err, &unroutable)
	require.True(t, unroutable.Strict)
}

// TestPublish_manyMessagesInOneCall checks that all messages are published or none, although one statement can't insert them all.
func TestPublish_manyMessagesInOneCall(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		ctx := sqltest.Context(t)
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		const n = 1500
		msgs := newMessages(n)
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", msgs...))
		for _, msg := range msgs {
			d := sqltest.Next(t, feed, sqltest.Patience)
			require.Equal(t, msg.UUID, d.Message.UUID)
			require.NoError(t, d.Settler.Ack())
		}
	})
}

// TestSubscribe_changesTheOrder checks that waiting messages move to the states of the new order.
func TestSubscribe_changesTheOrder(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		sub := sqltest.Subscription("shop.ledger", 1, "order.paid.v1")
		for i, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly, driver.Unordered} {
			transport := s.Open(t)
			sub.Order = order
			feed, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			if i > 0 {
				d := sqltest.Next(t, feed, sqltest.Patience)
				require.NoError(t, d.Settler.Ack())
			}
			for range 2 {
				msg := sqltest.NewMessage("order.paid.v1", "m")
				msg.Metadata[driver.HeaderPartitionKey] = "key"
				require.NoError(t, transport.Publish(ctx, "order.paid.v1", msg))
			}
			sqltest.CloseNow(t, transport)
		}
		transport := s.Start(t)
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		for range 5 {
			require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
		}
	})
}

func TestRetention_keepsHandledMessages(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		transport := s.Open(t, "keep_handled", "1h")
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(3)...))
		for range 3 {
			require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
		}
		sqltest.CloseNow(t, transport)
		require.Equal(t, 3, sqltest.Count(t, s.DB(t), "SELECT count(*) FROM "+s.Table("messages")+" WHERE state = 3"))
	})
}

func TestOpen_endsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := sqltest.OpenURL(ctx, "postgres://postgres@127.0.0.1:1/test?sslmode=disable&wait="+(2*sqltest.Patience).String())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), sqltest.Patience, "the option wait is longer")
}

// TestMigrate_oldTables checks that old tables are an error with migrate=check, are migrated with migrate=auto,
// and that their waiting messages are delivered.
func TestMigrate_oldTables(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx, db := sqltest.Context(t), s.DB(t)
		script, err := sql.MigrationSQL(s.Config, 0)
		require.NoError(t, err)
		for statement := range strings.SplitSeq(script, ";\n\n") {
			sqltest.Run(t, db, statement)
			if strings.HasPrefix(statement, "INSERT INTO") {
				break // version 1 is complete
			}
		}
		sqltest.Run(t, db, fmt.Sprintf("INSERT INTO %s (name, ordering, created_at) VALUES ('shop.ledger', 0, 0)", s.Table("groups")))
		sqltest.Run(t, db, fmt.Sprintf("INSERT INTO %s (group_id, created_at) SELECT id, 0 FROM %s", s.Table("turns"), s.Table("groups")))
		sqltest.Run(t, db, fmt.Sprintf(`INSERT INTO %s (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
			SELECT id, 0, 0, 0, 0, 'order.paid.v1', 'old', '', '{}' FROM %s`, s.Table("messages"), s.Table("groups")))

		var old *sql.SchemaError
		_, err = sqltest.OpenURL(ctx, testenv.WithOption(t, s.URL, "migrate", "check"))
		require.ErrorAs(t, err, &old)
		require.Equal(t, 1, old.Found)
		require.ErrorContains(t, err, "are at version 1")
		require.ErrorContains(t, err, "leat migrate up")
		rest, err := sql.MigrationSQL(s.Config, 1)
		require.NoError(t, err)
		require.NotRegexp(t, `CREATE TABLE.*leat_turns`, rest)

		transport := s.Start(t)
		version, err := sql.MigrationStatus(ctx, db, s.Config)
		require.NoError(t, err)
		require.Equal(t, sql.MinSchemaVersion, version)
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		d := sqltest.Next(t, feed, sqltest.Patience)
		require.Equal(t, "old", d.Message.UUID)
		require.NoError(t, d.Settler.Ack())
	})
}
