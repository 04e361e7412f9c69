package amqp_test

import (
	"flag"
	"sync"
	"testing"

	"github.com/leatbus/leat/internal/testenv"
)

// Most tests wait for a broker most of the time. So they run beside each other, each with names of its own: some at once on
// the broker that tests share; on the package's own broker those that do not disturb it, or one that stops or starves it; and
// one on its cluster.

// sharedTurns is how many tests use the shared broker at once.
const sharedTurns = 2

var turns = struct {
	shared  slots
	own     sync.RWMutex
	cluster sync.Mutex
}{shared: make(slots, sharedTurns)}

// await makes the test parallel and waits for its turn, which ends with the test.
func await(t *testing.T, turn sync.Locker) {
	t.Helper()
	t.Parallel()
	turn.Lock()
	t.Cleanup(turn.Unlock)
}

// slots is a lock that some have at once.
type slots chan struct{}

func (s slots) Lock()   { s <- struct{}{} }
func (s slots) Unlock() { <-s }

// sharedBroker returns the broker that tests share, when it is the test's turn.
func sharedBroker(t *testing.T) string {
	t.Helper()
	raw := testenv.RabbitMQ(t) // skips where RabbitMQ is not wanted at all
	await(t, turns.shared)
	return raw
}

// bothQueues runs a test with both types of queues at once.
func bothQueues(t *testing.T, broker string, test func(t *testing.T, raw string)) {
	eachQueue(t, broker, func(t *testing.T, raw string) {
		t.Parallel()
		test(t, raw)
	})
}

// eachQueue runs a test with one type of queues after the other: it disturbs the broker, or measures.
func eachQueue(t *testing.T, broker string, test func(t *testing.T, raw string)) {
	for _, queue := range []string{"quorum", "classic"} {
		t.Run(queue, func(t *testing.T) { test(t, withOptions(broker, "queue="+queue)) })
	}
}

// waitTogether lets all parallel tests begin, unless -parallel says how many: those that wait for their turn must not keep
// others from running.
func waitTogether() {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		_ = flag.Set("test.parallel", "1000")
	}
}
