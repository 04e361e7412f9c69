package sql_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// workerVariable makes this program a worker that publishes and consumes until it is killed. It prints lines with
// "ok" and "out" for accepted and handled messages.
const workerVariable = "LEAT_SQL_TEST_WORKER"

// TestTransport_survivesKills repeatedly kills processes that publish and consume by key, and starts others. No message may be
// lost, and no key may have two messages in flight.
func TestTransport_survivesKills(t *testing.T) {
	rounds := 10 // for each of two workers
	if n, err := strconv.Atoi(os.Getenv(sqltest.KillsVariable)); err == nil {
		rounds = (n + 1) / 2
	}
	eachSystem(t, func(t *testing.T, s system) {
		raw := testenv.WithOption(t, s.URL, "lease", "1s")
		transport := s.Start(t, "lease", "1s")
		sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1")
		sub.Order = driver.OrderedByKey
		_, err := transport.Subscribe(sqltest.Context(t), sub) // creates the group; this receiver claims nothing
		require.NoError(t, err)
		l := newLedger()
		var wg sync.WaitGroup
		for side := range 2 {
			wg.Go(func() {
				for round := range rounds {
					workAndDie(t, l, raw, fmt.Sprintf("%d-%d", side, round))
				}
			})
		}
		wg.Wait()

		feed, err := transport.Subscribe(sqltest.Context(t), sub)
		require.NoError(t, err)
		for {
			accepted, missing, twice := l.balance()
			if missing == 0 {
				t.Logf("%d accepted, %d handled twice", accepted, twice)
				require.Greater(t, accepted, rounds)
				return
			}
			d := sqltest.Next(t, feed, sqltest.Patience)
			l.handle(driver.MessageID(d.Message))
			require.NoError(t, d.Settler.Ack())
		}
	})
}

func workAndDie(t *testing.T, l *ledger, raw, name string) {
	worker := exec.Command(os.Args[0], "-test.run=TestWorker$")
	worker.Env = append(os.Environ(), workerVariable+"="+raw+" "+name)
	out, err := worker.StdoutPipe()
	if err != nil || worker.Start() != nil {
		t.Error("the worker does not start", err)
		return
	}
	lines := bufio.NewScanner(out)
	var kill *time.Timer
	for lines.Scan() {
		what, id, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "ok":
			if l.accept(id); kill == nil { // while it publishes
				kill = time.AfterFunc(rand.N(300*time.Millisecond), func() { _ = worker.Process.Kill() })
			}
		case "out":
			l.handle(id)
		}
	}
	if kill == nil {
		t.Errorf("the worker %s got nothing accepted", name)
	}
	_ = worker.Wait() // it was killed
}

func TestWorker(t *testing.T) {
	raw, name, ok := strings.Cut(os.Getenv(workerVariable), " ")
	if !ok {
		t.Skip("for TestTransport_survivesKills")
	}
	ctx := context.Background()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	transport, err := sql.Open(ctx, u)
	require.NoError(t, err)
	sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1")
	sub.Order = driver.OrderedByKey
	feed, err := transport.Subscribe(ctx, sub)
	require.NoError(t, err)
	for range sub.Concurrency {
		go func() {
			for {
				d, err := feed.Next(ctx)
				if err != nil {
					return
				}
				fmt.Printf("out %s\n", driver.MessageID(d.Message))
				_ = d.Settler.Ack()
			}
		}()
	}
	for i := 0; ; i++ {
		msg := sqltest.NewMessage("order.paid.v1", fmt.Sprintf("%s-%d", name, i))
		msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprintf("key-%d", i%5)
		if transport.Publish(ctx, "order.paid.v1", msg) == nil {
			fmt.Printf("ok %s\n", driver.MessageID(msg))
		}
	}
}

// TestKeyQueues_orderAcrossInstances checks that messages of a key are delivered one at a time and in order by several
// instances, while some fail and are redelivered.
func TestKeyQueues_orderAcrossInstances(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1")
		sub.Order = driver.OrderedByKey
		const keys, each = 10, 15
		var mu sync.Mutex
		out, seen, failed := map[string]string{}, map[string][]string{}, map[string]bool{}
		var wg sync.WaitGroup
		consuming, stop := context.WithCancel(ctx)
		for range 3 {
			feed, err := s.Start(t).Subscribe(ctx, sub)
			require.NoError(t, err)
			for range sub.Concurrency {
				wg.Go(func() {
					for {
						d, err := feed.Next(consuming)
						if err != nil {
							return
						}
						key, id := driver.PartitionKey(d.Message), driver.MessageID(d.Message)
						mu.Lock()
						if other := out[key]; other != "" {
							t.Errorf("%s came while %s was out", id, other)
						}
						out[key] = id
						mu.Unlock()
						time.Sleep(rand.N(2 * time.Millisecond))
						mu.Lock()
						delete(out, key)
						if !failed[id] && rand.IntN(5) == 0 {
							failed[id] = true
							_ = d.Settler.Redeliver(rand.N(40 * time.Millisecond))
						} else {
							seen[key] = append(seen[key], id)
							_ = d.Settler.Ack()
						}
						mu.Unlock()
					}
				})
			}
		}
		publisher := s.Start(t)
		want := map[string][]string{}
		for i := range each {
			for k := range keys {
				msg := sqltest.NewMessage("order.paid.v1", fmt.Sprintf("%d/%03d", k, i))
				key := fmt.Sprintf("key-%d", k)
				msg.Metadata[driver.HeaderPartitionKey] = key
				want[key] = append(want[key], msg.UUID)
				require.NoError(t, publisher.Publish(ctx, "order.paid.v1", msg))
			}
		}
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, ids := range seen {
				n += len(ids)
			}
			return n == keys*each
		}, sqltest.Patience, 10*time.Millisecond)
		stop()
		wg.Wait()
		require.Equal(t, want, seen)
	})
}
