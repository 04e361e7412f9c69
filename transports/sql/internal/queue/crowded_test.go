package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// crowdVariable is the number of waiting keys in the tests of large groups.
const crowdVariable = "LEAT_TEST_CROWD"

func waitingCrowd() int {
	if n, err := strconv.Atoi(os.Getenv(crowdVariable)); err == nil {
		return n
	}
	return 20_000
}

// openURL opens a transport for a URL.
func openURL(t *testing.T, raw string) (*Transport, error) {
	source, err := config.Parse(mustParse(t, raw))
	require.NoError(t, err)
	pool, err := database.Connect(source)
	require.NoError(t, err)
	return Open(t.Context(), pool, source.Config)
}

// eachStore runs a test on a transport of each dialect, with tables of its own.
func eachStore(t *testing.T, test func(t *testing.T, transport *Transport)) {
	start := func(t *testing.T, raw string) *Transport {
		transport, err := openURL(t, raw)
		require.NoError(t, err)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			require.NoError(t, transport.Close(ctx))
		})
		return transport
	}
	t.Run("postgres", func(t *testing.T) {
		raw := testenv.Postgres(t)
		_, cfg, _ := pgxSchema(t)
		u := mustParse(t, raw)
		q := u.Query()
		q.Set("schema", cfg.Schema)
		u.RawQuery = q.Encode()
		test(t, start(t, u.String()))
	})
	t.Run("mysql", func(t *testing.T) {
		u := mustParse(t, testenv.MySQL(t))
		name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
		source, err := config.Parse(u)
		require.NoError(t, err)
		db, err := database.OpenDB(source)
		require.NoError(t, err)
		run := func(ctx context.Context, query string) {
			testenv.Insist(t, func() error {
				_, err := db.ExecContext(ctx, query)
				return err
			})
		}
		run(t.Context(), "CREATE DATABASE "+name)
		t.Cleanup(func() {
			run(context.Background(), "DROP DATABASE "+name)
			require.NoError(t, db.Close())
		})
		u.Path = "/" + name
		test(t, start(t, u.String()))
	})
	t.Run("sqlite", func(t *testing.T) { test(t, start(t, "sqlite://"+t.TempDir()+"/test.db")) })
}

// waitingKeys inserts messages of n keys, which all wait for their redelivery.
func waitingKeys(t testing.TB, s *database.DB, group string, n int, wait time.Duration) {
	ctx := t.Context()
	g, ok, err := groups{DB: s}.find(ctx, group)
	require.NoError(t, err)
	require.True(t, ok)
	for done := 0; done < n; {
		const digits = `(SELECT 0 AS d UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4
			UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)`
		inserted, err := s.Pool.Exec(ctx, s.SQL(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, due_at, attempt, topic, uuid, headers, payload)
			SELECT CAST(? AS `+integer(s)+`), 4, k.n * 1000003, k.n * 1000003, {now}, {now} + CAST(? AS `+integer(s)+`), 1, 'order.paid.v1', 'waiting', '', ''
			FROM (SELECT 1 + a.d + 10 * b.d + 100 * c.d + 1000 * d.d + CAST(? AS `+integer(s)+`) AS n
				FROM `+digits+` a CROSS JOIN `+digits+` b CROSS JOIN `+digits+` c CROSS JOIN `+digits+` d) k
			WHERE k.n <= CAST(? AS `+integer(s)+`)`), g.id, wait.Microseconds(), done, n)
		require.NoError(t, err)
		require.NotZero(t, inserted)
		done += int(inserted)
	}
}

func integer(s *database.DB) string {
	if s.Name == sqlconfig.MySQL {
		return "SIGNED"
	}
	return "bigint"
}

func keyedMessage(key string) *message.Message {
	msg := message.NewMessage(key, nil)
	msg.Metadata = message.Metadata{driver.HeaderID: key, driver.HeaderPartitionKey: key}
	return msg
}

// TestKeyQueues_aFreshKeyBehindManyThatWait checks that a message of a new key is delivered at once, although many other
// keys wait for their redelivery: by a new receiver, by one that was idle, and behind a message of its own key.
func TestKeyQueues_aFreshKeyBehindManyThatWait(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 4, Order: driver.OrderedByKey}
		first, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.NoError(t, first.Close(ctx))
		n := waitingCrowd()
		if transport.core.Name != sqlconfig.Postgres { // SQLite's driver is many times slower under the race detector
			n /= 5
		}
		waitingKeys(t, transport.core.DB, sub.Group, n, time.Hour)
		receiver, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		next := func() *driver.Delivery {
			ctx, cancel := context.WithTimeout(ctx, time.Minute) // fails if nothing but a walk finds it
			defer cancel()
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			return d
		}
		began := time.Now()
		var took []time.Duration
		for i := range 20 {
			key := fmt.Sprintf("fresh-%d", i/2) // two of each
			published := time.Now()
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", keyedMessage(key), keyedMessage(key)))
			for range 2 {
				d := next()
				require.Equal(t, key, d.Message.UUID)
				require.NoError(t, d.Settler.Ack())
			}
			took = append(took, time.Since(published))
		}
		slices.Sort(took)
		median := took[len(took)/2]
		t.Logf("%d keys wait: 40 messages of fresh keys in %s, %s for two, at worst %s", n, time.Since(began), median, took[len(took)-1])
		require.Less(t, median, 10*time.Second, "the walk finds them") // a busy machine delays some of them

		// A message that is given back with a delay is redelivered when it is due.
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", keyedMessage("again")))
		require.NoError(t, next().Settler.Redeliver(50*time.Millisecond))
		require.NoError(t, next().Settler.Ack())
		// The walk finds a message that another process has inserted.
		query := transport.core.SQL(`UPDATE {messages} SET due_at = 0 WHERE pos = ?`)
		_, err = transport.core.Pool.Exec(ctx, query, int64(n/2)*1000003)
		require.NoError(t, err)
		patient, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		d, err := receiver.Next(patient)
		require.NoError(t, err)
		require.Equal(t, "waiting", d.Message.UUID)
		require.NoError(t, d.Settler.Ack())
	})
}
