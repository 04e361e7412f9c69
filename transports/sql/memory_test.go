package sql_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

const (
	// eaterVariable makes this program a consumer of large messages.
	eaterVariable = "LEAT_SQL_TEST_EATER"
	// largeVariable is the number of messages of 10 MB in TestMemory. Without it, the test uses some of 1.5 MB.
	largeVariable = "LEAT_TEST_LARGE"
	// smallMessages are as many as it takes to learn to fetch more at once than there are large ones.
	smallMessages = 200
)

func largeMessages() (n, size int) {
	if n, err := strconv.Atoi(os.Getenv(largeVariable)); err == nil {
		return n, 10_000_000
	}
	return 24, 1_500_000
}

// largePatience is patience, and more if there are many large messages. A slow disk takes seconds for each: claiming one
// writes its whole row again in SQLite.
func largePatience() time.Duration {
	if n, size := largeMessages(); size > 1_500_000 {
		return sqltest.Patience + time.Duration(n)*5*time.Second
	}
	return sqltest.Patience
}

// TestMemory_largeMessagesAreFetchedWithinTheBytes checks that a receiver whose prefetch small messages have raised claims no more
// large messages than fit into PrefetchBytes. The logged memory is that of the whole process, so the race detector multiplies it.
// With GOMEMLIMIT=100MiB it must stay below 128 MiB.
func TestMemory_largeMessagesAreFetchedWithinTheBytes(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*largePatience())
			defer cancel()
			transport := s.Start(t)
			group := fmt.Sprintf("shop.ledger%d", order)
			topic := eaterTopic(order)
			sub := sqltest.Subscription(group, 1, topic)
			sub.Order = order
			feed, err := transport.Subscribe(ctx, sub) // creates the group
			require.NoError(t, err)
			require.NoError(t, feed.Close(ctx))
			publish := func(n, size int) {
				for i := range n {
					m := sqltest.NewMessage(topic, fmt.Sprintf("%d-%d", size, i))
					if size > 1000 { // else keys of small messages would be taken with those of large ones
						m.Metadata[driver.HeaderPartitionKey] = fmt.Sprint("key-", i)
					}
					m.Payload = make(message.Payload, size)
					require.NoError(t, transport.Publish(ctx, topic, m))
				}
			}
			publish(smallMessages, 10)
			publish(largeMessages())
			eater := exec.Command(os.Args[0], "-test.run=TestEater$", "-test.v")
			eater.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s %s", eaterVariable, group, order, s.Table("messages"), s.URL))
			out, err := eater.CombinedOutput()
			require.NoError(t, err, string(out))
			buffered := regexp.MustCompile(`at most (\d+) large`).FindSubmatch(out)
			require.NotNil(t, buffered, string(out))
			peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(out)
			if peak != nil {
				t.Logf("%s: %s large messages out of the tables, at most %s KiB of memory", order, buffered[1], peak[1])
				if kib, err := strconv.Atoi(string(peak[1])); os.Getenv("GOMEMLIMIT") == "100MiB" {
					require.NoError(t, err)
					require.Less(t, kib, 128<<10)
				}
			}
			n, err := strconv.Atoi(string(buffered[1]))
			require.NoError(t, err)
			require.Positive(t, n, "what is fetched was not counted")
			require.LessOrEqual(t, n, 14, "two in hands, six and one in the buffer, and some that are counted late")
		}
	})
}

// eaterTopic returns a topic of the group's own. What waits for another group must not be counted.
func eaterTopic(order driver.Order) string { return fmt.Sprintf("order.paid.v%d", 1+order) }

func TestEater(t *testing.T) {
	group, rest, ok := strings.Cut(os.Getenv(eaterVariable), " ")
	if !ok {
		t.Skip("for TestMemory_largeMessagesAreFetchedWithinTheBytes")
	}
	number, rest, _ := strings.Cut(rest, " ")
	table, raw, _ := strings.Cut(rest, " ")
	order, err := strconv.Atoi(number)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), largePatience())
	defer cancel()
	transport, err := sqltest.OpenURL(ctx, raw)
	require.NoError(t, err)
	sub := sqltest.Subscription(group, 2, eaterTopic(driver.Order(order)))
	sub.Order = driver.Order(order)
	feed, err := transport.Subscribe(ctx, sub)
	require.NoError(t, err)
	db := sqltest.OpenDB(t, raw)
	defer func() { require.NoError(t, db.Close()) }()
	handled, counted := make(chan int), make(chan struct{})
	for range 2 {
		go func() {
			for {
				d, err := feed.Next(ctx)
				if err != nil {
					return
				}
				size := len(d.Message.Payload)
				if size > 1000 {
					time.Sleep(50 * time.Millisecond) // a slow handler
				}
				handled <- size
				<-counted
				_ = d.Settler.Ack()
			}
		}()
	}
	most := 0
	large, largeSize := largeMessages()
	acked := 0
	for left := smallMessages + large; left > 0; left-- {
		if size := <-handled; size > 1000 {
			waiting := sqltest.Count(t, db, fmt.Sprintf("SELECT count(*) FROM %s WHERE owner = 0 AND uuid LIKE '%d-%%'", table, largeSize)) // MySQL would read payloads to tell their length
			most = max(most, large-acked-waiting)
			acked++ // perhaps not in the database yet
		}
		counted <- struct{}{}
	}
	fmt.Printf("at most %d large\n", most)
	if status, err := os.ReadFile("/proc/self/status"); err == nil { // the peak, if the system has it
		for line := range bytes.Lines(status) {
			if bytes.HasPrefix(line, []byte("VmHWM")) {
				fmt.Print(string(line))
			}
		}
	}
	sqltest.CloseNow(t, transport)
}

// TestClaim_readsPayloadsOfAnySize checks that large payloads are whole, which SQLite reads by statements of their own.
func TestClaim_readsPayloadsOfAnySize(t *testing.T) {
	sizes := []int{0, 1, 65_536, 65_537, 300_000}
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		transport := s.Start(t)
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly} {
			topic := eaterTopic(order)
			sub := sqltest.Subscription("shop."+topic, 1, topic)
			sub.Order = order
			feed, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			payloads := make(map[string][]byte)
			for i, size := range sizes {
				m := sqltest.NewMessage(topic, fmt.Sprint("m-", i))
				m.Metadata[driver.HeaderPartitionKey] = fmt.Sprint("key-", i)
				m.Payload = bytes.Repeat([]byte{byte('a' + i)}, size)
				payloads[m.UUID] = m.Payload
				require.NoError(t, transport.Publish(ctx, topic, m))
			}
			for range sizes {
				d := sqltest.Next(t, feed, sqltest.Patience)
				require.True(t, bytes.Equal(payloads[d.Message.UUID], d.Message.Payload), "%s: message %s has %d bytes", order, d.Message.UUID, len(d.Message.Payload))
				delete(payloads, d.Message.UUID)
				require.NoError(t, d.Settler.Ack())
			}
			require.Empty(t, payloads)
			require.NoError(t, feed.Close(ctx))
		}
	})
}
