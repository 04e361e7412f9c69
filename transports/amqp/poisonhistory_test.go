package amqp_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// Several processes use a poison queue at random, and interrupt some of their calls. In the end each message is where the calls that
// returned without an error have put it. A call that was interrupted has moved a message or not, and lost none.
func TestPoisonQueue_randomHistories(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		group, topic := unique("ledger"), unique("order.paid.v1")
		main := open(t, raw)
		subscribe(t, main, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
		const processes, each, calls = 3, 150, 8
		all := make([]*history, processes)
		var running sync.WaitGroup
		for i := range all {
			transport := open(t, raw)
			h := &history{t: t, queue: transport.PoisonQueue(group), topic: topic, name: fmt.Sprint(i), fates: make(map[string]fate)}
			all[i] = h
			running.Go(func() {
				h.add(each)
				for range calls {
					h.call()
				}
				closeAll(t, transport)
			})
		}
		running.Wait()
		if t.Failed() {
			return
		}

		list, err := main.PoisonQueue(group).List(t.Context(), "", 100_000)
		require.NoError(t, err)
		poisoned := make(map[string]int)
		for _, p := range list {
			poisoned[driver.MessageID(p.Message)]++
		}
		replayed := make(map[string]int)
		withBroker(t, raw, func(ch *rabbit.Channel) {
			for n := depth(t, raw, group); n > 0; {
				d, there, err := ch.Get(group, true)
				require.NoError(t, err)
				if there {
					replayed[d.MessageId]++
					n--
				}
			}
		})
		for _, h := range all {
			for id, fate := range h.fates {
				where := fmt.Sprintf("%s (%s): %d times in the poison queue, %d times replayed", id, fate, poisoned[id], replayed[id])
				switch fate {
				case stays:
					require.True(t, poisoned[id] == 1 && replayed[id] == 0, where)
				case isReplayed:
					require.True(t, poisoned[id] == 0 && replayed[id] == 1, where)
				case isDropped:
					require.True(t, poisoned[id] == 0 && replayed[id] == 0, where)
				case maybeReplayed:
					require.True(t, poisoned[id] <= 1 && replayed[id] <= 1 && poisoned[id]+replayed[id] > 0, where)
				case maybeDropped:
					require.True(t, poisoned[id] <= 1 && replayed[id] == 0, where)
				}
			}
		}
		closeAll(t, main)
	})
}

type fate string

const (
	stays         fate = "stays"
	isReplayed    fate = "replayed"
	maybeReplayed fate = "replay interrupted"
	isDropped     fate = "dropped"
	maybeDropped  fate = "drop interrupted"
)

// A history is what one process does with its own messages in a poison queue that others use too.
type history struct {
	t     *testing.T
	queue driver.PoisonQueue
	topic string
	name  string
	fates map[string]fate // by message id
}

// add puts new messages into the queue.
func (h *history) add(n int) {
	msgs := make([]driver.PoisonedMessage, n)
	for i := range msgs {
		id := fmt.Sprintf("%s/%04d", h.name, len(h.fates))
		msgs[i].Message = newMessage(h.topic, id)
		driver.Fault{Topic: h.topic}.Set(msgs[i].Message.Metadata)
		h.fates[id] = stays
	}
	if err := h.queue.Put(h.t.Context(), msgs...); err != nil {
		h.t.Errorf("put: %v", err)
	}
}

// call lists the messages of this process, adds one, and replays, drops or changes some.
func (h *history) call() {
	shown := make(map[string]driver.PoisonedMessage)
	err := h.queue.(driver.PoisonWalker).Walk(h.t.Context(), func(p driver.PoisonedMessage) error {
		id := driver.MessageID(p.Message)
		if _, twice := shown[id]; twice {
			h.t.Errorf("%s was shown twice", id)
		}
		shown[id] = p
		return nil
	})
	if err != nil {
		h.t.Errorf("walk: %v", err)
	}
	maps.DeleteFunc(shown, func(id string, _ driver.PoisonedMessage) bool { return h.fates[id] != stays })
	for id, fate := range h.fates {
		if _, here := shown[id]; fate == stays && !here {
			h.t.Errorf("%s was not shown", id)
		}
	}
	h.add(1)

	msgIDs := slices.Sorted(maps.Keys(shown))
	rand.Shuffle(len(msgIDs), func(i, j int) { msgIDs[i], msgIDs[j] = msgIDs[j], msgIDs[i] })
	msgIDs = msgIDs[:min(len(msgIDs), 1+rand.IntN(40))]
	ids := make([]string, len(msgIDs))
	msgs := make([]driver.PoisonedMessage, len(msgIDs))
	for i, id := range msgIDs {
		ids[i], msgs[i] = shown[id].ID, shown[id]
	}
	ctx, interrupt := context.WithCancel(h.t.Context())
	defer interrupt()
	if rand.IntN(2) == 0 {
		defer time.AfterFunc(time.Duration(rand.IntN(200))*time.Millisecond, interrupt).Stop()
	}
	is, maybe := stays, stays
	switch rand.IntN(4) {
	case 0:
		err = h.queue.Put(ctx, msgs...)
	case 1:
		is, maybe = isDropped, maybeDropped
		_, err = h.queue.Drop(ctx, ids...)
	default:
		is, maybe = isReplayed, maybeReplayed
		_, err = h.queue.Replay(ctx, ids...)
	}
	if err != nil && ctx.Err() == nil {
		h.t.Errorf("%s: %v", is, err)
	}
	for _, id := range msgIDs {
		if h.fates[id] = is; err != nil {
			h.fates[id] = maybe
		}
	}
}
