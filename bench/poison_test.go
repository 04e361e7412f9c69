package bench_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
)

// The duration of an operator's commands: counting 10,000 poisoned messages by class of error, and replaying them.
// LEAT_TEST_LONG=1 makes it 100,000.
//
//	go test ./bench -run xxx -bench Poison -benchtime 3x

var dead = func() int {
	if os.Getenv("LEAT_TEST_LONG") != "" {
		return 100_000
	}
	return 10_000
}()

func BenchmarkPoisonClasses(b *testing.B) {
	eachGraveyard(b, func(b *testing.B, queue driver.PoisonQueue) {
		bury(b, queue)
		var first time.Duration
		for b.Loop() {
			var classes admin.Classes
			began, begun := time.Now(), false
			require.NoError(b, admin.Each(b.Context(), queue, "", func(m driver.PoisonedMessage) error {
				if !begun {
					begun = true
					first += time.Since(began)
				}
				classes.Add("ledger", m)
				return nil
			}))
			require.Len(b, classes.List(), 3)
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/all")
		b.ReportMetric(first.Seconds()/float64(b.N), "s/first")
	})
}

func BenchmarkPoisonReplay(b *testing.B) {
	eachGraveyard(b, func(b *testing.B, queue driver.PoisonQueue) {
		var took time.Duration
		for range b.N {
			ids := bury(b, queue)
			began := time.Now()
			moved, err := admin.Move{IDs: ids, Act: queue.Replay}.Run(b.Context())
			took += time.Since(began)
			require.NoError(b, err)
			require.Equal(b, dead, moved.Done)
		}
		b.ReportMetric(float64(dead*b.N)/took.Seconds(), "msg/s")
	})
}

// bury writes messages of three classes of error into the queue and returns their ids.
func bury(b *testing.B, queue driver.PoisonQueue) (ids []string) {
	classes := []string{"*net.OpError", "*json.SyntaxError", "*errors.errorString"}
	msgs := make([]driver.PoisonedMessage, dead)
	for i := range msgs {
		msg := message.NewMessage(bus.NewID(), make([]byte, 512))
		msg.Metadata = message.Metadata{driver.HeaderID: msg.UUID, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "bench"}
		driver.Fault{Text: "it failed", Class: classes[i%len(classes)], Attempts: 8, At: time.Now(), Topic: "order.paid.v1"}.Set(msg.Metadata)
		msgs[i].Message = msg
	}
	require.NoError(b, queue.Put(b.Context(), msgs...))
	require.NoError(b, admin.Each(b.Context(), queue, "", func(m driver.PoisonedMessage) error {
		ids = append(ids, m.ID)
		return nil
	}))
	require.Len(b, ids, dead)
	return ids
}

func eachGraveyard(b *testing.B, bench func(*testing.B, driver.PoisonQueue)) {
	for name, address := range map[string]func(testing.TB) string{
		"postgres": func(tb testing.TB) string {
			w := newSQLWorld(tb)
			return testenv.WithOption(tb, w.url, "schema", w.schema)
		},
		"quorum":  func(tb testing.TB) string { return testenv.WithOption(tb, testenv.RabbitMQ(tb), "queue", "quorum") },
		"classic": func(tb testing.TB) string { return testenv.WithOption(tb, testenv.RabbitMQ(tb), "queue", "classic") },
	} {
		b.Run(name, func(b *testing.B) {
			at, group := address(b), fmt.Sprintf("bench%08x.ledger", rand.Uint32())
			transport, err := transports.Open(b.Context(), at)
			require.NoError(b, err)
			defer func() {
				require.NoError(b, transport.Close(context.Background()))
				testenv.Forget(b, at, group)
			}()
			feed, err := transport.Subscribe(b.Context(), driver.Subscription{Group: group, Topics: []string{"order.paid.v1"}, Concurrency: 1})
			require.NoError(b, err)
			require.NoError(b, feed.Close(b.Context()))
			bench(b, transport.PoisonQueue(group))
		})
	}
}
