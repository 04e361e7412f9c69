package amqp_test

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// crashHelper is the process that crashes: it handles what comes, tells the attempts on its standard
// output, and dies without a word over the message "killer".
func TestMainOfTheProcessThatCrashes(t *testing.T) {
	group := os.Getenv("LEAT_TEST_CRASH_GROUP")
	if group == "" {
		t.Skip("this is the other process of TestCrash_aMessageKillsItsProcess")
	}
	transport, err := openURL(t.Context(), os.Getenv("LEAT_TEST_CRASH_URL"))
	require.NoError(t, err)
	topic := os.Getenv("LEAT_TEST_CRASH_TOPIC")
	feed, err := transport.Subscribe(t.Context(), driver.Subscription{
		Group: group, Topics: []string{topic}, Known: []string{topic}, Concurrency: 4, Order: crashOrder(),
	})
	require.NoError(t, err)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				d, err := feed.Next(t.Context())
				if err != nil {
					return
				}
				mu.Lock()
				_, _ = os.Stdout.WriteString("\nhanded " + driver.MessageID(d.Message) + " " + strconv.Itoa(d.Attempt) + "\n")
				mu.Unlock()
				if driver.MessageID(d.Message) == "killer" {
					os.Exit(9)
				}
				select { // in the middle of handling when the process dies
				case <-time.After(50 * time.Millisecond):
				case <-t.Context().Done():
				}
				_ = d.Settler.Ack()
			}
		})
	}
	wg.Wait()
}

// A message that kills its process must be seen with growing attempts, so that it can be poisoned;
// its neighbours, fetched or handled at the same time, must not be counted along for long.
func TestCrash_aMessageKillsItsProcess(t *testing.T) {
	broker := sharedBroker(t)
	for name, c := range map[string]struct {
		queue string
		order driver.Order
	}{
		"quorum":                 {"quorum", driver.Unordered},
		"classic":                {"classic", driver.Unordered},
		"quorum, ordered by key": {"quorum", driver.OrderedByKey},
		"quorum, strictly":       {"quorum", driver.OrderedStrictly},
	} {
		t.Run(name, func(t *testing.T) {
			raw := withOptions(broker, "queue="+c.queue)
			transport := open(t, raw)
			group, topic := unique("ledger"), unique("order.paid.v1")
			subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: c.order})
			for _, id := range []string{"a", "killer", "b", "c", "d", "e", "f"} {
				msg := newMessage(topic, id)
				msg.Metadata[driver.HeaderPartitionKey] = id
				require.NoError(t, transport.Publish(t.Context(), topic, msg))
			}
			highest := map[string]int{}
			for crash := 1; highest["killer"] < 6; crash++ { // how many others are counted with it depends on the speed of the machine
				require.LessOrEqual(t, crash, 20, "its attempts grow")
				for id, attempt := range crashOnce(t, raw, group, topic, c.order) {
					highest[id] = max(highest[id], attempt)
				}
				t.Logf("after crash %d: %v", crash, highest)
			}
			for id, attempt := range highest {
				if id != "killer" {
					require.Less(t, attempt, 6, "message %s did no harm", id)
				}
			}
			closeAll(t, transport)
		})
	}
}

// crashOnce runs the process until it dies, and returns the attempts it saw.
func crashOnce(t *testing.T, raw, group, topic string, order driver.Order) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMainOfTheProcessThatCrashes$")
	cmd.Env = append(os.Environ(), "LEAT_TEST_CRASH_GROUP="+group, "LEAT_TEST_CRASH_URL="+patiently(raw), "LEAT_TEST_CRASH_TOPIC="+topic,
		"LEAT_TEST_CRASH_ORDER="+strconv.Itoa(int(order)))
	out, err := cmd.Output()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 9, exit.ExitCode(), "%s", out)
	seen := make(map[string]int)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "handed" {
			attempt, _ := strconv.Atoi(fields[2])
			seen[fields[1]] = max(seen[fields[1]], attempt)
		}
	}
	return seen
}

func crashOrder() driver.Order {
	n, _ := strconv.Atoi(os.Getenv("LEAT_TEST_CRASH_ORDER"))
	return driver.Order(n)
}
