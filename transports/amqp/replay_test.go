package amqp_test

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/amqp"
)

// killsVariable is how often TestReplay_isKilled kills.
const killsVariable = "LEAT_TEST_KILLS"

// TestMainOfTheProcessThatReplays replays a whole poison queue, until it is killed.
func TestMainOfTheProcessThatReplays(t *testing.T) {
	group := os.Getenv("LEAT_TEST_REPLAY_GROUP")
	if group == "" {
		t.Skip("this is the other process of TestReplay_isKilled")
	}
	transport, err := openURL(t.Context(), os.Getenv("LEAT_TEST_REPLAY_URL"))
	require.NoError(t, err)
	ids := poisoned(t, transport, group)
	_, _ = os.Stdout.WriteString("\nreplaying\n")
	_, err = transport.PoisonQueue(group).Replay(t.Context(), ids...)
	require.NoError(t, err)
	closeAll(t, transport)
}

// An operator's process that is killed in the middle of a replay leaves no message in neither place, and
// at most a window of them in both. Those are handled once, where dedup is on.
func TestReplay_isKilled(t *testing.T) {
	broker := sharedBroker(t)
	kills := 3
	if n, err := strconv.Atoi(os.Getenv(killsVariable)); err == nil {
		kills = n
	}
	for _, queue := range []string{"quorum", "classic"} {
		t.Run(queue, func(t *testing.T) {
			raw := withOptions(broker, "queue="+queue)
			transport := open(t, raw)
			service, topic := unique("shop"), unique("order.paid.v1")
			group := service + ".ledger"
			feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
			n := 400 * kills
			fillPoison(t, transport, feed, topic, n)
			require.NoError(t, feed.Close(t.Context()))

			for kill := 1; kill <= kills; kill++ {
				killReplay(t, raw, group, kill*n/(kills+1))
				eventually(t, "what was under way is in one place or the other, or both", func() bool {
					both := depth(t, raw, group) + depth(t, raw, group+".poison") - n
					return both >= 0 && both <= kill*amqp.ReplayWindow
				})
			}
			handled, stats := handleAll(t, raw, service, topic, n)
			require.Len(t, handled, n, "nothing is lost")
			for id, times := range handled {
				require.Equal(t, 1, times, "message %s", id)
			}
			require.LessOrEqual(t, int(stats.Duplicates), kills*amqp.ReplayWindow)
			t.Logf("%d messages, %d kills, %d were in both places", n, kills, stats.Duplicates)
			closeAll(t, transport)
		})
	}
}

// An operator who interrupts a replay leaves no message in both places: what was published is taken out.
func TestReplay_interruptedLeavesNoMessageInTwoQueues(t *testing.T) {
	broker := sharedBroker(t)
	for _, queue := range []string{"quorum", "classic"} {
		t.Run(queue, func(t *testing.T) {
			raw := withOptions(broker, "queue="+queue)
			transport, operator := open(t, raw), open(t, raw)
			group, topic := unique("ledger"), unique("order.paid.v1")
			feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
			const n = 50
			fillPoison(t, transport, feed, topic, n)
			for _, id := range poisoned(t, operator, group) {
				ctx, interrupt := context.WithCancel(t.Context())
				replayed := make(chan error, 1)
				go func() {
					_, err := operator.PoisonQueue(group).Replay(ctx, id)
					replayed <- err
				}()
				d := next(t, feed) // it is published, and may not be taken yet
				interrupt()
				ack(t, d)
				if err := <-replayed; err != nil {
					require.ErrorIs(t, err, context.Canceled)
				}
			}
			require.Empty(t, poisoned(t, operator, group))
			closeAll(t, transport, operator)
		})
	}
}

// A replay that is interrupted also removes again what the broker requeues although it was acked. The test puts the message there
// again, since the broker rarely does that.
func TestReplay_interruptedAcksAgain(t *testing.T) {
	eachQueue(t, sharedBroker(t), func(t *testing.T, raw string) {
		transport := open(t, raw)
		group, topic := unique("ledger"), unique("order.paid.v1")
		subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
		message := func(id string, size int) rabbit.Publishing {
			return rabbit.Publishing{Headers: rabbit.Table{"leat-poison-id": id, "leat-topic": topic}, Body: make([]byte, size)}
		}
		const large = 9 << 20 // so that it is replayed alone
		putRaw(t, raw, group, message("a", large), message("b", 0))
		poison := transport.PoisonQueue(group)
		ctx, interrupt := context.WithCancel(t.Context())
		n, err := poison.Replay(driver.WithProgress(ctx, func(int) {
			putRaw(t, raw, group, message("a", 0))
			interrupt()
		}), "a", "b")
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, n)
		require.Equal(t, []string{"b"}, poisoned(t, transport, group))
		require.Equal(t, 1, depth(t, raw, group))
		closeAll(t, transport)
	})
}

// A replay of which the broker refuses a message moves the others. None of them is in both places.
func TestReplay_refusedLeavesNoMessageInTwoQueues(t *testing.T) {
	eachQueue(t, sharedBroker(t), func(t *testing.T, raw string) {
		transport := open(t, raw)
		group, topic := unique("ledger"), unique("order.paid.v1")
		subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
		full := group + ".full"
		withBroker(t, raw, func(ch *rabbit.Channel) {
			_, err := ch.QueueDeclare(full, false, true, false, false, rabbit.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})
			require.NoError(t, err)
			require.NoError(t, ch.PublishWithContext(t.Context(), "", full, true, false, rabbit.Publishing{}))
			eventually(t, "it is full", func() bool { return depth(t, raw, full) == 1 })
			const others = 20
			all := []rabbit.Publishing{{Headers: rabbit.Table{"leat-poison-id": "a", "leat-topic": topic, "leat-queue": full}}}
			ids := []string{"a"}
			for i := range others {
				ids = append(ids, "b"+strconv.Itoa(i))
				all = append(all, rabbit.Publishing{Headers: rabbit.Table{"leat-poison-id": ids[i+1], "leat-topic": topic}})
			}
			putRaw(t, raw, group, all...)
			n, err := transport.PoisonQueue(group).Replay(t.Context(), ids...)
			require.ErrorContains(t, err, "refused")
			require.Equal(t, others, n)
			require.Equal(t, []string{"a"}, poisoned(t, transport, group))
			require.Equal(t, others, depth(t, raw, group))
		})
		closeAll(t, transport)
	})
}

// killReplay starts a replay, and kills it when so many messages are in the group's queue.
func killReplay(t *testing.T, raw, group string, when int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainOfTheProcessThatReplays$")
	cmd.Env = append(os.Environ(), "LEAT_TEST_REPLAY_GROUP="+group, "LEAT_TEST_REPLAY_URL="+patiently(raw))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "replaying" {
		require.NotContains(t, lines.Text(), "FAIL")
	}
	withBroker(t, raw, func(ch *rabbit.Channel) { // asked without a pause: a replay is over soon
		began := time.Now()
		for n := 0; n < when; {
			require.Less(t, time.Since(began), patience, "some of it should be replayed")
			q, err := ch.QueueDeclarePassive(group, true, false, false, false, nil)
			require.NoError(t, err)
			n = q.Messages
		}
		require.NoError(t, cmd.Process.Kill())
	})
	_ = cmd.Wait() // killed
}

// handleAll handles what is in the group's queue, with dedup, then replays the rest and handles that.
func handleAll(t *testing.T, raw, service, topic string, n int) (handled map[string]int, stats bus.GroupStats) {
	t.Helper()
	transport := open(t, raw)
	b, err := bus.New(transport, bus.Config{Service: service, Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	var mu sync.Mutex
	handled = make(map[string]int)
	require.NoError(t, b.Handle(bus.Handler{
		Name: "ledger", Topics: []string{topic}, Concurrency: 8,
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				mu.Lock()
				defer mu.Unlock()
				handled[driver.MessageID(msg)]++
				return nil, nil
			}
		},
	}))
	ran := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ran <- b.Run(ctx) }()
	<-b.Running()
	rest := poisoned(t, transport, service+".ledger")
	moved, err := transport.PoisonQueue(service+".ledger").Replay(t.Context(), rest...)
	require.NoError(t, err)
	require.Equal(t, len(rest), moved)
	eventually(t, "everything is handled", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(handled) >= n && depth(t, raw, service+".ledger") == 0
	})
	stop()
	require.NoError(t, <-ran)
	stats = b.Stats().Groups["ledger"]
	require.NoError(t, b.Close(context.Background()))
	return handled, stats
}

// poisoned returns the ids of everything in a poison queue.
func poisoned(t *testing.T, transport driver.Transport, group string) (ids []string) {
	t.Helper()
	list, err := transport.PoisonQueue(group).List(t.Context(), "", 100_000)
	require.NoError(t, err)
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}
