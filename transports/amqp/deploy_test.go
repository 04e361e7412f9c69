package amqp_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// A rolling deploy under load: a new process starts, the old one is told to stop, again and again.
// Nothing is lost, nothing is handled twice, nothing healthy is poisoned.
func TestDeploy_underLoad(t *testing.T) {
	broker := sharedBroker(t)
	for _, queue := range []string{"quorum", "classic"} {
		t.Run(queue, func(t *testing.T) {
			raw := withOptions(broker, "queue="+queue)
			service := unique("shop")
			topic := unique("order.paid.v1")
			var mu sync.Mutex
			handled := make(map[string]int)
			run := func() (stop func()) {
				transport := open(t, raw)
				b, err := bus.New(transport, bus.Config{Service: service})
				require.NoError(t, err)
				require.NoError(t, b.Handle(bus.Handler{
					Name: "ledger", Topics: []string{topic}, Concurrency: 8,
					Bind: func(bus.Encoder) message.HandlerFunc {
						return func(msg *message.Message) ([]*message.Message, error) {
							<-time.After(2 * time.Millisecond)
							mu.Lock()
							defer mu.Unlock()
							handled[driver.MessageID(msg)]++
							return nil, nil
						}
					},
				}))
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- b.Run(ctx) }()
				<-b.Running()
				return func() {
					cancel()
					require.NoError(t, <-done)
					closeAll(t, transport)
				}
			}
			stop := run()
			publishing, end := context.WithCancel(t.Context())
			publisher := open(t, raw)
			n := make(chan int, 1)
			go func() {
				i := 0
				for ; publishing.Err() == nil; i++ {
					if err := publisher.Publish(t.Context(), topic, newMessage(topic, fmt.Sprint(i))); err != nil {
						t.Errorf("publish: %v", err)
					}
				}
				n <- i
			}()
			for range 4 {
				<-time.After(300 * time.Millisecond)
				next := run()
				stop()
				stop = next
			}
			end()
			published := <-n
			eventually(t, "everything is handled", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(handled) == published
			})
			poisoned, err := publisher.PoisonQueue(service + ".ledger").Len(t.Context())
			require.NoError(t, err)
			require.Zero(t, poisoned)
			stop()
			closeAll(t, publisher)
			for id, times := range handled {
				require.Equal(t, 1, times, "message %s", id)
			}
			t.Logf("%d messages over 5 processes", published)
		})
	}
}
