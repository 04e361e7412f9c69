package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// littered is how many deleted rows make look-ups slow on quick machines, too.
const littered = 100_000

// litter leaves n deleted rows of one key queue, or of n key queues, in the index, as handled messages do.
func litter(t *testing.T, s *database.DB, g group, n int, queue string) {
	for _, query := range []string{
		`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
			SELECT ?, 4, ` + queue + `, ` + queue + `, 0, 'litter', 'm', '', '' FROM generate_series(1, ` + fmt.Sprint(n) + `) AS m(n)`,
		`UPDATE {messages} SET state = 5 WHERE group_id = ? AND topic = 'litter'`,
		`DELETE FROM {messages} WHERE group_id = ? AND topic = 'litter'`,
	} {
		_, err := s.Pool.Exec(t.Context(), s.SQL(query), g.id)
		require.NoError(t, err)
	}
}

// holdSnapshot begins a transaction that sees the rows that are deleted from now on.
func holdSnapshot(t *testing.T, s *database.DB) {
	tx, err := s.Pool.(*database.PgxPool).Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	var n int
	require.NoError(t, tx.QueryRow(t.Context(), s.SQL(`SELECT count(*) FROM {messages}`)).Scan(&n))
}

// buffers runs a statement, and returns how many blocks it has read.
func buffers(t *testing.T, s *database.DB, query string, args ...any) int {
	var text []byte
	require.NoError(t, s.Pool.(*database.PgxPool).Pool.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+query, args...).Scan(&text))
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	require.NoError(t, json.Unmarshal(text, &plans))
	return plans[0].Plan.Hit + plans[0].Plan.Read
}

// keyedFeed returns the fetcher of a receiver of an ordered group. It does not run.
func keyedFeed(t *testing.T, s *database.DB, order driver.Order) (*core, *fetcher) {
	c := newCore(s)
	t.Cleanup(func() { c.cancel(driver.ErrClosed) })
	sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: order, Park: true}
	id := newConsumerID()
	g, err := c.groups.subscribe(t.Context(), sub, id)
	require.NoError(t, err)
	return c, newFetcher(newReceiver(c, newConsumer(id, g, subscriberOf(sub)), sub))
}

// insertKeyed inserts one message, over the pool or in a transaction.
func insertKeyed(t *testing.T, ex database.Executor, s *database.DB, g group, queue int64) (id int64) {
	ids, err := database.Numbers(t.Context(), ex, s.SQL(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
		VALUES (?, {keyed}, ?, ?, {now}, 'order.paid.v1', 'm', '', '') RETURNING id`), g.id, queue, queue)
	require.NoError(t, err)
	return ids[0]
}

// TestKeyLows_lookUpsDoNotWalkOverDeletedRows checks that claims are fast although a snapshot keeps deleted rows in the index.
// Without lower bounds a claim takes time in proportion to the number of deleted rows.
func TestKeyLows_lookUpsDoNotWalkOverDeletedRows(t *testing.T) {
	t.Parallel()
	for _, order := range []driver.Order{driver.OrderedByKey, driver.OrderedStrictly} {
		t.Run(order.String(), func(t *testing.T) {
			ctx := t.Context()
			s, _ := pgxStore(t)
			holdSnapshot(t, s)
			c, f := keyedFeed(t, s, order)
			queue := int64(0)
			if order == driver.OrderedByKey {
				queue = 7
			}
			litter(t, s, f.group, littered, fmt.Sprint(queue))
			for n := 0; n < 5 || !f.lows.slow() || f.lows.settled == 0; n++ { // as messages are published and handled
				require.Less(t, n, 1000, "the look-ups are not taken for slow")
				id := insertKeyed(t, s.Pool, s, f.group, queue)
				f.settlements.keys.settle(queue)
				taken, err := f.claimKeys(ctx, keyClaim{claim: claim{group: f.group, owner: f.consumer.id, limit: 1, bytes: 1 << 20}, lows: f.lows, walk: f.rounds.walk})
				require.NoError(t, err)
				require.Len(t, taken, 1)
				require.Equal(t, id, taken[0].id)
				require.NoError(t, c.claims.ack(ctx, s.Pool, f.consumer.id, []int64{id}))
			}
			id := insertKeyed(t, s.Pool, s, f.group, queue)
			_, err := f.claimKeys(ctx, keyClaim{claim: claim{group: f.group, owner: 1, limit: 0, bytes: 1}, lows: f.lows, walk: f.rounds.walk})
			require.NoError(t, err)
			for n, low := range []int64{0, f.lows.of([]int64{queue})[0], f.lows.of([]int64{queue})[0]} {
				if n == 2 { // as the server does soon
					_, err := s.Pool.Exec(ctx, s.SQL(`ANALYZE {messages}`))
					require.NoError(t, err)
				}
				first := buffers(t, s, s.SQL(headsOfPostgres), f.group.id, []int64{queue}, []int64{low})
				free := buffers(t, s, s.SQL(`SELECT m.id`+freeHeadsPostgres), []int64{queue}, []int64{id}, []int64{low}, f.group.id)
				t.Logf("from %d: %d and %d blocks", low, first, free)
				if low > 0 {
					require.Less(t, max(first, free), 50)
				} else {
					require.Greater(t, min(first, free), 500)
				}
			}
		})
	}
}

// TestKeyRounds_walksOverDeletedRowsSeldom checks a group with many keys of a message or two, whose index has deleted rows of
// many empty key queues.
func TestKeyRounds_walksOverDeletedRowsSeldom(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := pgxStore(t)
	holdSnapshot(t, s)
	c, f := keyedFeed(t, s, driver.OrderedByKey)
	litter(t, s, f.group, littered, "m.n")
	began, walks, claims := time.Now(), 0, 0
	for queue := int64(1); !f.rounds.litter || claims < 200; queue++ {
		require.Less(t, queue, int64(1000), "the walk is not taken for slow")
		id := insertKeyed(t, s.Pool, s, f.group, -queue)
		if f.rounds.litter {
			claims++
		}
		noWalk := f.rounds.litter && f.rounds.noWalk(time.Now())
		for taken := 0; taken == 0; { // the first claim treats existing rows as old
			found, err := f.claimKeys(ctx, keyClaim{claim: claim{group: f.group, owner: f.consumer.id, limit: 1, bytes: 1 << 20}, lows: f.lows, walk: f.rounds.walk})
			require.NoError(t, err)
			taken = len(found)
		}
		if f.rounds.litter && !noWalk {
			walks++
		}
		require.NoError(t, c.claims.ack(ctx, s.Pool, f.consumer.id, []int64{id}))
	}
	require.LessOrEqual(t, walks, 2+int(time.Since(began)/time.Second), "of %d claims", claims)
}

// TestKeyRounds_messagesOfTheTimeWhenWalksBecomeRare checks that a claim soon finds a message that was inserted about when the group
// was found to be littered, wherever the walk stood: walks are rare from then on, and over many keys that wait they take long.
func TestKeyRounds_messagesOfTheTimeWhenWalksBecomeRare(t *testing.T) {
	t.Parallel()
	const waiting = 1500 // three claims walk over them
	for claims := range 6 {
		for _, queue := range []int64{-1, 700*1000003 + 1, 1 << 40} {
			for _, before := range []bool{true, false} {
				t.Run(fmt.Sprintf("after %d claims, queue %d, before %t", claims, queue, before), func(t *testing.T) {
					s, _ := pgxStore(t)
					_, f := keyedFeed(t, s, driver.OrderedByKey)
					waitingKeys(t, s, f.group.name, waiting, time.Hour)
					claim := func() []record {
						taken, err := f.claimKeys(t.Context(), keyClaim{claim: claim{group: f.group, owner: f.consumer.id, limit: 1, bytes: 1 << 20}, lows: f.lows, walk: f.rounds.walk})
						require.NoError(t, err)
						return taken
					}
					for range claims {
						require.Empty(t, claim())
					}
					var id int64
					if before {
						id = insertKeyed(t, s.Pool, s, f.group, queue)
					}
					for !f.rounds.litter {
						f.rounds.littered(true)
					}
					if !before {
						id = insertKeyed(t, s.Pool, s, f.group, queue)
					}
					var taken []record
					for n := 0; len(taken) == 0; n++ {
						require.Less(t, n, 10, "the message is not found")
						taken = claim()
					}
					require.Equal(t, id, taken[0].id)
				})
			}
		}
	}
}

// TestKeyLows_keepTheOrder runs random actions of a group's consumers, publishers and operators, while every look-up starts
// at its lower bound. A claimed message must be the first of its key, and no other of the key may be claimed.
func TestKeyLows_keepTheOrder(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _ := pgxStore(t)
	const keys = 4
	var receivers []*fetcher
	var c *core
	for range 3 {
		var f *fetcher
		c, f = keyedFeed(t, s, driver.OrderedByKey)
		f.lows.until = time.Now().Add(time.Hour)
		receivers = append(receivers, f)
	}
	g := receivers[0].group
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	var late []pgx.Tx
	t.Cleanup(func() {
		for _, tx := range late {
			_ = tx.Rollback(context.Background())
		}
	})
	taken := make(map[int64]*fetcher)
	out := func() (id int64, f *fetcher) {
		for id, f = range taken {
			delete(taken, id)
			return id, f
		}
		return 0, nil
	}
	bounded := 0
	for range 1500 {
		f := receivers[random.IntN(len(receivers))]
		queue := 1 + random.Int64N(keys)
		what := random.IntN(12)
		if what >= 4 && what <= 8 && random.IntN(5) > 0 { // a returned message makes the receivers reset their bounds
			what = 11
		}
		switch what {
		case 0, 1:
			insertKeyed(t, s.Pool, s, g, queue)
		case 2: // committed later than others with larger ids
			tx, err := s.Pool.(*database.PgxPool).Pool.Begin(ctx)
			require.NoError(t, err)
			own, _, err := s.UserTx(tx)
			require.NoError(t, err)
			insertKeyed(t, own, s, g, queue)
			if late = append(late, tx); len(late) > 2 {
				require.NoError(t, late[0].Commit(ctx))
				late = late[1:]
			}
		case 3:
			if len(late) > 0 {
				require.NoError(t, late[0].Commit(ctx))
				late = late[1:]
			}
		case 4:
			_, err := s.Pool.Exec(ctx, s.SQL(`UPDATE {messages} SET state = {delayed}, pos = 0 WHERE id = ?`), insertKeyed(t, s.Pool, s, g, queue))
			require.NoError(t, err)
		case 5:
			_, _, err := c.claims.promote(ctx, g)
			require.NoError(t, err)
		case 6:
			if id, f := out(); f != nil {
				require.NoError(t, c.poison.set(ctx, g, f.consumer.id, id, []byte("{}")))
			}
		case 7:
			ids, err := database.Numbers(ctx, s.Pool, s.SQL(`SELECT id FROM {messages} WHERE state = {poisoned} ORDER BY id`))
			require.NoError(t, err)
			if len(ids) > 0 {
				require.NoError(t, c.groups.locked(ctx, s.Pool, g, func(tx lockedGroup) error {
					_, _, err := c.poison.replay(ctx, tx, ids[random.IntN(len(ids)):][:1])
					return err
				}))
			}
		case 8:
			require.NoError(t, c.groups.locked(ctx, s.Pool, g, func(tx lockedGroup) error { return c.holds.park(ctx, tx, []int64{1, 2, 3, 4}) }))
		case 9:
			if id, f := out(); f != nil {
				require.NoError(t, c.claims.put(ctx, s.Pool, f.consumer.id, []int64{id}, 0))
			}
		default:
			for len(taken) > random.IntN(keys) {
				id, f := out()
				require.NoError(t, c.claims.ack(ctx, s.Pool, f.consumer.id, []int64{id}))
			}
			f.lows.asked = time.Time{} // no pause
			for q := range int64(keys) {
				f.settlements.keys.settle(1 + q)
			}
			if f.lows.low[queue] > 0 {
				bounded++
			}
			found, err := f.claimKeys(ctx, keyClaim{claim: claim{group: g, owner: f.consumer.id, limit: 2, bytes: 1 << 20}, lows: f.lows, walk: f.rounds.walk})
			require.NoError(t, err)
			for _, m := range found {
				taken[m.id] = f
			}
			type row struct {
				id, pos int64
				state   database.State
			}
			all, err := database.Collect(ctx, s.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.id, &x.pos, &x.state) },
				s.SQL(`SELECT id, pos, state FROM {messages} WHERE state IN ({keyed}, {keyhead}) ORDER BY id`))
			require.NoError(t, err)
			for _, m := range found {
				var before []row
				for _, x := range all {
					if x.id == m.id {
						before = nil
						for _, y := range all {
							if y.pos == x.pos && y.id != x.id && (y.id < x.id || y.state == database.StateKeyHead) {
								before = append(before, y)
							}
						}
					}
				}
				require.Empty(t, before, "message %d is not the only one", m.id)
			}
		}
	}
	t.Logf("%d claims with lower bounds", bounded)
	require.Greater(t, bounded, 100)
}
