package cli

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/transports/memory"
)

// slowWalk is a transport with poison queues whose walks call before before each message.
type slowWalk struct {
	*memory.Transport
	before func(n int)
}

func (t slowWalk) PoisonQueue(group string) driver.PoisonQueue {
	return slowQueue{t.Transport.PoisonQueue(group), t.before}
}

type slowQueue struct {
	driver.PoisonQueue
	before func(n int)
}

func (q slowQueue) Walk(ctx context.Context, fn func(driver.PoisonedMessage) error) error {
	n := 0
	return admin.Each(ctx, q.PoisonQueue, "", func(m driver.PoisonedMessage) error {
		q.before(n)
		n++
		return fn(m)
	})
}

func TestPoisonLs_printsATableBeforeItCountsTheRest(t *testing.T) {
	transport := memory.New(memory.Config{})
	receiver, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
	require.NoError(t, err)
	for i := range 5 {
		require.NoError(t, transport.Publish(t.Context(), "order.paid.v1", message.NewMessage(fmt.Sprint("m-", i), []byte("{}"))))
		d, err := receiver.Next(t.Context())
		require.NoError(t, err)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, fmt.Errorf("broken"))))
	}
	for limit, want := range map[int]string{2: "and 3 more; --limit 0 shows all\n", 5: "", 9: "", 0: ""} {
		var out, said bytes.Buffer
		slow := slowWalk{transport, func(n int) {
			if n == limit {
				require.Equal(t, limit > 0, bytes.Contains(out.Bytes(), []byte("m-1")), "limit %d: %s", limit, &out)
			}
		}}
		e := &Env{Program: "shop", Stdout: &out, Stderr: &said, Open: func(context.Context) (driver.Transport, error) { return slow, nil }}
		e.Close = func(context.Context) error { return nil }
		require.Zero(t, Run(t.Context(), new(Commands), e, "", []string{"poison", "ls", "--limit", fmt.Sprint(limit)}), &said)
		require.Equal(t, 1, bytes.Count(out.Bytes(), []byte("ATTEMPTS")), "limit %d", limit)
		require.Equal(t, want, said.String(), "limit %d", limit)
	}
	require.NoError(t, receiver.Close(t.Context()))
	require.NoError(t, transport.Close(t.Context()))
}
