package outbox_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// twoTries returns a configuration that poisons a message at its third refusal, without delays.
func twoTries() outbox.Config {
	return outbox.Config{Batch: 50, Retry: bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Millisecond}}}
}

// refuse makes publishes fail with err that have a message for which bad returns true. calls returns the number of publishes.
func (f *far) refuse(err error, bad func(*message.Message) bool) (calls func() int) {
	n := 0
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = func(msgs []*message.Message) error {
		n++
		if slices.ContainsFunc(msgs, bad) {
			return err
		}
		return nil
	}
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return n
	}
}

func (f *far) works() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = nil
}

func poisonedIn(t testing.TB, o *outbox.Outbox) int {
	n, err := o.PoisonQueue().Len(sqltest.Context(t))
	require.NoError(t, err)
	return n
}

// TestRelay_countsNoTryWhileEverythingIsRefused checks that no attempt is counted while the broker can't be reached, although most
// clients return an error at once then. Afterwards everything is published, in the order of the keys.
func TestRelay_countsNoTryWhileEverythingIsRefused(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"refused": errors.New("not now"),
		"network": fmt.Errorf("dial tcp 127.0.0.1:9092: %w", syscall.ECONNREFUSED),
	} {
		t.Run(name, func(t *testing.T) {
			eachSystem(t, func(t *testing.T, s system) {
				db, f, o := s.Service(t), &far{}, s.outbox(t, twoTries())
				relay(t, o, f)
				inTx(t, db, o, keyed("order.paid.v1", "first", 0)) // the broker works at first
				f.await(t, 1)
				calls := f.refuse(err, func(*message.Message) bool { return true })
				var want []string
				for i := range 5 {
					var msgs []*message.Message
					for n := range 20 {
						msgs = append(msgs, keyed("order.paid.v1", fmt.Sprintf("k%d", i), n), keyed("order.paid.v1", "", 100*i+n))
						want = append(want, msgs[len(msgs)-2].UUID)
					}
					inTx(t, db, o, msgs...)
				}
				require.Eventually(t, func() bool { return calls() > 300 }, sqltest.Patience, 5*time.Millisecond)
				require.ErrorContains(t, o.Problem(), err.Error())
				require.Zero(t, poisonedIn(t, o))
				f.works()
				var got []string
				for _, id := range f.await(t, 201)[1:] {
					if !strings.HasPrefix(id, "-") {
						got = append(got, id)
					}
				}
				require.ElementsMatch(t, want, got)
				last := map[string]string{}
				for _, id := range got {
					require.Less(t, last[id[:2]], id, "the order of a key")
					last[id[:2]] = id
				}
				require.Eventually(t, func() bool { return o.Problem() == nil }, sqltest.Patience, time.Millisecond)
				require.Zero(t, poisonedIn(t, o))
			})
		})
	}
}

// TestRelay_countsNoTryOfALoneMessageWhoseConnectionFails checks a message without others to compare it with.
func TestRelay_countsNoTryOfALoneMessageWhoseConnectionFails(t *testing.T) {
	t.Parallel()
	s := onSQLite(t)
	db, f, o := s.Service(t), &far{}, s.outbox(t, twoTries())
	relay(t, o, f)
	inTx(t, db, o, keyed("order.paid.v1", "first", 0))
	f.await(t, 1)
	calls := f.refuse(fmt.Errorf("dial tcp: %w", syscall.ECONNREFUSED), func(*message.Message) bool { return true })
	inTx(t, db, o, keyed("order.paid.v1", "lone", 0))
	require.Eventually(t, func() bool { return calls() > 6 }, sqltest.Patience, 5*time.Millisecond)
	require.Zero(t, poisonedIn(t, o))
	f.works()
	f.await(t, 2)
}

// TestRelay_countsNoTryWhileAWholeTopicIsRefused checks that messages wait while all of their topic are refused, as when a queue
// is full, and that those of other topics are relayed.
func TestRelay_countsNoTryWhileAWholeTopicIsRefused(t *testing.T) {
	t.Parallel()
	s := onSQLite(t)
	db, f, o := s.Service(t), &far{}, s.outbox(t, twoTries())
	calls := f.refuse(errors.New("queue is full"), func(msg *message.Message) bool { return driver.TopicOf(msg) == "order.full.v1" })
	for i := range 100 {
		inTx(t, db, o, keyed("order.full.v1", fmt.Sprintf("full%d", i), 0), keyed("order.paid.v1", fmt.Sprintf("paid%d", i), 0))
	}
	relay(t, o, f)
	f.await(t, 100)
	before := calls()
	require.Eventually(t, func() bool { return calls() > before+20 }, sqltest.Patience, 5*time.Millisecond)
	require.ErrorContains(t, o.Problem(), "queue is full")
	inTx(t, db, o, keyed("order.paid.v1", "more", 0))
	f.await(t, 101)
	require.Zero(t, poisonedIn(t, o))
	f.works()
	f.await(t, 201)
	require.Eventually(t, func() bool { return o.Problem() == nil }, sqltest.Patience, time.Millisecond)
}

// TestRelay_findsGoodMessagesBehindManyBadOnes uses the error of an unreachable broker for bad messages: clients return it if the
// broker closes the connection because a message is too large.
func TestRelay_findsGoodMessagesBehindManyBadOnes(t *testing.T) {
	t.Parallel()
	s := onSQLite(t)
	db, f, o := s.Service(t), &far{}, s.outbox(t, twoTries())
	f.refuse(fmt.Errorf("write: %w", syscall.EPIPE), func(msg *message.Message) bool { return strings.HasPrefix(msg.UUID, "bad") })
	for i := range 30 {
		inTx(t, db, o, keyed("order.paid.v1", fmt.Sprintf("bad%d", i), 0))
	}
	for i := range 15 {
		inTx(t, db, o, keyed("order.paid.v1", fmt.Sprintf("good%d", i), 0))
	}
	relay(t, o, f)
	f.await(t, 15)
	for n := 0; poisonedIn(t, o) < 30; n++ { // an attempt counts only if others succeed meanwhile
		inTx(t, db, o, keyed("order.paid.v1", fmt.Sprintf("later%d", n), 0))
		f.await(t, 16+n)
	}
}

// TestRelay_countsRefusalsNotCrashes checks that the death of relays is no refusal.
func TestRelay_countsRefusalsNotCrashes(t *testing.T) {
	t.Parallel()
	s := onSQLite(t)
	db, f, o := s.Service(t), &far{}, s.outbox(t, outbox.Config{Retry: bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Hour}}})
	refused := 0
	f.fail = func(msgs []*message.Message) error {
		for _, msg := range msgs {
			if msg.UUID == "bad-0000" {
				if len(msgs) == 1 {
					refused++
				}
				return errors.New("refused")
			}
		}
		return nil
	}
	inTx(t, db, o, keyed("order.paid.v1", "bad", 0), keyed("order.paid.v1", "good", 0))
	sqltest.Run(t, s.DB(t), "UPDATE "+s.Table("messages")+" SET attempt = 7")
	relay(t, o, f)
	f.await(t, 1)
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return refused > 0
	}, sqltest.Patience, time.Millisecond)
	require.Eventually(t, func() bool {
		return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table("messages")+" WHERE state = 4 AND due_at > 0") == 1
	}, sqltest.Patience, time.Millisecond, "it waits for its last try")
	require.Zero(t, poisonedIn(t, o))
}
