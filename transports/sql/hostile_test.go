package sql_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// A hostileRow is a row that another application has inserted.
type hostileRow struct {
	state, attempt       int
	pos, due, first, own int64
	headers, payload     []byte
}

func (s system) insertHostile(t *testing.T, group string, lane int64, r hostileRow) {
	marks := []any{"?", "?", "?"}
	if s.Config.Dialect == sql.Postgres {
		marks = []any{"$1", "$2", "$3"}
	}
	query := fmt.Sprintf(`INSERT INTO %s (group_id, state, pos, lane, first_at, due_at, owner, attempt, topic, uuid, headers, payload)
		SELECT id, %d, %d, %d, %d, %d, %d, %d, 'order.paid.v1', 'bad%d', `,
		s.Table("messages"), r.state, r.pos, lane, r.first, r.due, r.own, r.attempt, rand.Uint32())
	query += fmt.Sprintf(`%s, %s FROM %s WHERE name = %s`, marks[0], marks[1], s.Table("groups"), marks[2])
	sqltest.Run(t, s.DB(t), query, r.headers, r.payload, group)
}

// TestHostileRows_stopNobody checks that, whatever numbers, headers and payloads others insert, valid messages are handled
// and invalid ones are in the poison queue with a reason.
func TestHostileRows_stopNobody(t *testing.T) {
	const good = 1000
	var table bytes.Buffer
	table.WriteString(`{`)
	for i := range 10_000 {
		fmt.Fprintf(&table, `"name-%d":"%s",`, i, strings.Repeat("v", 50))
	}
	table.WriteString(`"last":""}`)
	private := `{"leat_fault_failures":"9223372036854775807","leat_fault_failed_at":"0001-01-01T00:00:00Z","leat_fault_group":"other",
		"leat_fault_due":"9999-12-31T23:59:59Z","leat_fault_waiting":"x","leat_instance":"x","leat_deliver_at":"x","leat_position":"1"}`
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
			transport := s.Start(t)
			b, err := bus.New(transport, bus.Config{Service: "shop", Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			var handled, leaked atomic.Int64
			h := bus.Handler{
				Name: fmt.Sprintf("ledger%d", order), Topics: []string{"order.paid.v1"}, Concurrency: 4, Order: order,
				Bind: func(bus.Encoder) message.HandlerFunc {
					return func(msg *message.Message) ([]*message.Message, error) {
						for name := range msg.Metadata {
							if strings.HasPrefix(name, "leat_") && name != driver.HeaderInstance && name != driver.HeaderDeliverAt {
								leaked.Add(1)
							}
						}
						if strings.HasPrefix(msg.UUID, "bad") {
							return nil, bus.Permanent(fmt.Errorf("bad"))
						}
						handled.Add(1)
						return nil, nil
					}
				},
			}
			require.NoError(t, b.Handle(h))
			group := "shop." + h.Name
			sub := sqltest.Subscription(group, 1, "order.paid.v1")
			sub.Order, sub.Park = order, order == driver.OrderedByKey
			feed, err := transport.Subscribe(ctx, sub) // creates the group
			require.NoError(t, err)
			require.NoError(t, feed.Close(ctx))
			ready, keyed := 0, int64(0)
			if order == driver.OrderedByKey {
				ready, keyed = 4, 1
			}
			var rows []hostileRow
			add := func(r hostileRow) {
				if r.headers == nil {
					r.headers = []byte(`{}`)
				}
				if r.payload == nil {
					r.payload = []byte(`{}`)
				}
				rows = append(rows, r)
			}
			for _, n := range []int64{math.MinInt64, math.MinInt64 + 1, -1, math.MaxInt64} {
				add(hostileRow{state: ready, first: n})
				add(hostileRow{state: ready, own: n})
				if n < 0 {
					add(hostileRow{state: 1, pos: n})
					add(hostileRow{state: ready, due: n})
				}
			}
			for _, n := range []int{math.MinInt32, -1, math.MaxInt32 - 1, math.MaxInt32} {
				add(hostileRow{state: ready, attempt: n})
			}
			for _, headers := range []string{private, table.String(), `{"a":`, "{\"a\":\"\xff\"}", "\x00", `{"a":"\u0000"}`} {
				add(hostileRow{state: ready, headers: []byte(headers)})
			}
			add(hostileRow{state: ready, payload: bytes.Repeat([]byte{0}, 10<<20)})
			for i, r := range rows {
				if r.state == 4 {
					r.pos = int64(i+1) * keyed
				}
				s.insertHostile(t, group, int64(i+1)*keyed, r)
			}
			running, stop := context.WithCancel(ctx)
			ended := make(chan error, 1)
			go func() { ended <- b.Run(running) }()
			for round := range good / 100 {
				var msgs []*message.Message
				for i := range 100 {
					m := sqltest.NewMessage("order.paid.v1", fmt.Sprint("good", 100*round+i))
					m.Metadata[driver.HeaderPartitionKey] = fmt.Sprint("key", i%10)
					msgs = append(msgs, m)
				}
				require.NoError(t, transport.Publish(ctx, "order.paid.v1", msgs...))
			}
			queue := transport.PoisonQueue(group)
			poisoned := 0
			for deadline := time.Now().Add(sqltest.Patience); poisoned != len(rows) || handled.Load() < good; {
				require.True(t, time.Now().Before(deadline), "the group stands still: %d of %d bad ones are poisoned, %d of %d good ones handled",
					poisoned, len(rows), handled.Load(), good)
				time.Sleep(20 * time.Millisecond)
				poisoned, err = queue.Len(ctx)
				require.NoError(t, err)
			}
			require.EqualValues(t, good, handled.Load())
			require.Zero(t, leaked.Load(), "private headers came through")
			for after := ""; ; {
				list, err := queue.List(ctx, after, 5)
				require.NoError(t, err)
				if len(list) == 0 {
					break
				}
				for _, m := range list {
					require.NotEmpty(t, m.Fault.Text)
					require.Equal(t, group, m.Fault.Group)
				}
				after = list[len(list)-1].ID
			}
			stop()
			require.NoError(t, <-ended)
		}
	})
}
