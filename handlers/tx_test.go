package handlers_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
)

// fakeInbox is an inbox whose transactions are maps: what is written shows when it is committed.
type fakeInbox struct {
	mu        sync.Mutex
	seen      map[string]bool
	balance   map[string]int64
	commitErr error
}

type fakeTx map[string]int64

func (i *fakeInbox) Once(ctx context.Context, group, id string, fn func(context.Context, fakeTx) error) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seen[group+" "+id] {
		return true, nil
	}
	tx := fakeTx{}
	if err := fn(ctx, tx); err != nil {
		return false, err
	}
	if err := i.commitErr; err != nil {
		i.commitErr = nil
		return false, err
	}
	i.seen[group+" "+id] = true
	for account, cents := range tx {
		i.balance[account] += cents
	}
	return false, nil
}

func TestTx_hasItsEffectOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inbox := &fakeInbox{seen: map[string]bool{}, balance: map[string]int64{}, commitErr: errBroken}
		calls := 0
		w := newWorld(t, handlers.Tx("ledger", inbox, func(ctx context.Context, tx fakeTx, e orderPaid) error {
			require.NotNil(t, bus.DeliveryFrom(ctx))
			calls++
			tx[e.OrderID] += e.Cents
			if calls == 1 {
				return errBroken // its effects are rolled back
			}
			return nil
		}, handlers.Dedup(bus.DedupOff)))
		for range 3 {
			require.NoError(t, w.bus.Publish(t.Context(), orderPaid{OrderID: "o-1", Cents: 7}, bus.WithID("id-1")))
			w.idle()
		}
		require.Equal(t, 3, calls, "it failed, its commit failed, it was done")
		require.Equal(t, map[string]int64{"o-1": 7}, inbox.balance)
		require.Equal(t, map[string]bool{"shop.ledger id:4:shop:id-1": true}, inbox.seen)
		require.EqualValues(t, 1, w.stats("ledger").Handled)
		require.EqualValues(t, 2, w.stats("ledger").Duplicates)
	})
}

func TestTx_keepsTheFunctionsError(t *testing.T) {
	inbox := &fakeInbox{seen: map[string]bool{}, balance: map[string]int64{}}
	w := newWorld(t, handlers.Tx("ledger", inbox, func(context.Context, fakeTx, orderPaid) error { return bus.Permanent(errBroken) }))
	w.publish(orderPaid{OrderID: "o-1"})
	w.idle()
	require.Equal(t, "inbox: the handler is broken", w.poisoned("ledger").Fault.Text)
	require.Equal(t, 1, w.poisoned("ledger").Fault.Tries)
	require.Empty(t, inbox.seen)
}
