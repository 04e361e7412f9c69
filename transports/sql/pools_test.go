package sql_test

import (
	"bytes"
	"context"
	stdsql "database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// mysqlVariable is the URL of another MySQL server, of another version, for the tests of users' pools.
const mysqlVariable = "LEAT_TEST_MYSQL9_URL"

// A userPool is a pool of a service.
type userPool struct {
	open  func(t testing.TB) driver.Transport
	begin func(t testing.TB) (tx any, commit func())
}

// userPools returns a constructor for every driver that users may have, and for common settings of roles and sessions.
func userPools() map[string]func(t testing.TB) userPool {
	pools := map[string]func(t testing.TB) userPool{
		"pgx": func(t testing.TB) userPool {
			s := onPostgres(t)
			pool, _ := s.Pool(t)
			return onPgx(s, pool)
		},
		"pgx with settings of the role": func(t testing.TB) userPool {
			s := onPostgres(t)
			pool, _ := s.Pool(t, "default_transaction_isolation", "serializable", "idle_in_transaction_session_timeout", "5s",
				"lock_timeout", "5s", "standard_conforming_strings", "off", "bytea_output", "escape", "TimeZone", "Asia/Kolkata",
				"plan_cache_mode", "force_generic_plan", "synchronous_commit", "off")
			return onPgx(s, pool)
		},
		"database/sql on pgx": func(t testing.TB) userPool {
			s := onPostgres(t)
			pool, _ := s.Pool(t)
			return onStd(t, s, stdlib.OpenDBFromPool(pool))
		},
		"sqlite": func(t testing.TB) userPool {
			s := onSQLite(t)
			return onStd(t, s, s.Service(t))
		},
	}
	for server, on := range map[string]func(t testing.TB) system{"mysql": onMySQL, "mysql 9": onOtherMySQL} {
		pools[server] = func(t testing.TB) userPool {
			s := on(t)
			return onStd(t, s, s.stdPool(t))
		}
		pools[server+" interpolating"] = func(t testing.TB) userPool {
			s := on(t)
			return onStd(t, s, s.stdPool(t, "interpolateParams", "true"))
		}
		pools[server+" with settings of the session"] = func(t testing.TB) userPool {
			s := on(t)
			var isolation string // MySQL and newer versions of MariaDB know the first, older ones the second
			require.NoError(t, s.stdPool(t).QueryRowContext(sqltest.Context(t),
				`SHOW VARIABLES WHERE Variable_name IN ('transaction_isolation', 'tx_isolation')`).Scan(&isolation, new(string)))
			return onStd(t, s, s.stdPool(t, "sql_mode", "'ANSI,TRADITIONAL,NO_BACKSLASH_ESCAPES'", "sql_safe_updates", "1",
				isolation, "'SERIALIZABLE'", "time_zone", "'+05:30'"))
		}
	}
	return pools
}

func onOtherMySQL(t testing.TB) system {
	raw := os.Getenv(mysqlVariable)
	if raw == "" {
		t.Skipf("no other version of MySQL to test with; set %s", mysqlVariable)
	}
	return system{sqltest.OnMySQLAt(t, raw)}
}

func onPgx(s system, pool *pgxpool.Pool) userPool {
	return userPool{
		open: func(t testing.TB) driver.Transport { return s.onPool(t, pool) },
		begin: func(t testing.TB) (any, func()) {
			tx, err := pool.Begin(sqltest.Context(t))
			require.NoError(t, err)
			return tx, func() { require.NoError(t, tx.Commit(sqltest.Context(t))) }
		},
	}
}

func onStd(t testing.TB, s system, db *stdsql.DB) userPool {
	t.Cleanup(func() { _ = db.Close() })
	return userPool{
		open: func(t testing.TB) driver.Transport {
			transport, err := sql.New(sqltest.Context(t), db, s.Config)
			require.NoError(t, err)
			t.Cleanup(func() { sqltest.CloseNow(t, transport) })
			return transport
		},
		begin: func(t testing.TB) (any, func()) {
			tx, err := db.BeginTx(context.Background(), nil)
			require.NoError(t, err)
			return tx, func() { require.NoError(t, tx.Commit()) }
		},
	}
}

// TestUserPools_keepEveryByte checks that a large payload and large headers are delivered unchanged with every driver: after
// single and batch inserts, inserts in the user's transaction, and a replay from the poison queue.
func TestUserPools_keepEveryByte(t *testing.T) {
	t.Parallel()
	for name, open := range userPools() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, ctx := open(t), sqltest.Context(t)
			transport := pool.open(t)
			sub := sqltest.Subscription("shop.ledger", 1, "order.paid.v1")
			sub.Order = driver.OrderedByKey
			feed, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			want := map[string]*message.Message{}
			some := func(n int) (msgs []*message.Message) {
				for range n {
					msg := largeMessage(fmt.Sprintf("m-%d", len(want)))
					want[msg.UUID] = msg
					msgs = append(msgs, msg.Copy())
				}
				return msgs
			}
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", some(1)...))
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", some(3)...))
			tx, commit := pool.begin(t)
			for range 2 {
				require.NoError(t, transport.(driver.TxPublisher).PublishTx(ctx, tx, "order.paid.v1", some(2)...))
			}
			commit()
			same := func(msg *message.Message) {
				require.True(t, bytes.Equal(want[msg.UUID].Payload, msg.Payload), "%d bytes were published, %d came", len(want[msg.UUID].Payload), len(msg.Payload))
				for name, value := range want[msg.UUID].Metadata {
					require.Zero(t, strings.Compare(msg.Metadata[name], value), "header %q: %d bytes were published, %d came", name, len(value), len(msg.Metadata[name]))
				}
			}
			for range want {
				d := sqltest.Next(t, feed, sqltest.Patience)
				same(d.Message)
				require.NoError(t, d.Settler.Poison(ctx, driver.Fault{Text: "test"}))
			}
			queue := transport.PoisonQueue(sub.Group)
			list, err := queue.List(ctx, "", 100)
			require.NoError(t, err)
			require.Len(t, list, len(want))
			var ids []string
			for _, m := range list {
				same(m.Message)
				ids = append(ids, m.ID)
			}
			require.NoError(t, queue.Put(ctx, driver.PoisonedMessage{Message: some(1)[0]}, list[0]))
			n, err := queue.Replay(ctx, ids...)
			require.NoError(t, err)
			require.Equal(t, len(ids), n)
			for range ids {
				d := sqltest.Next(t, feed, sqltest.Patience)
				same(d.Message)
				require.NoError(t, d.Settler.Ack())
			}
			list, err = queue.List(ctx, "", 100)
			require.NoError(t, err)
			require.Len(t, list, 1)
			same(list[0].Message)
		})
	}
}

// largeMessage returns a message with a payload and a header of more than 64 KiB that have every byte.
func largeMessage(id string) *message.Message {
	msg := sqltest.NewMessage("order.paid.v1", id)
	msg.Metadata[driver.HeaderPartitionKey] = "k'\"\\%_" + id
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	msg.Payload = append([]byte("\x00\xff'\\\n?"), random...)
	msg.Metadata["large"] = string(random[:70_000])
	return msg
}
