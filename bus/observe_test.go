package bus_test

import (
	"context"
	"errors"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/transports/memory"
)

// publishWatcher is told when publishes begin and end.
type publishWatcher struct {
	bus.Observer
	mu     sync.Mutex
	events []string
	panics bool
}

type watcherKey struct{}

func (w *publishWatcher) note(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event)
}

func (w *publishWatcher) Publishing(ctx context.Context, topic string, msgs []*message.Message, relayed bool) (context.Context, func(error)) {
	if w.panics {
		panic("watcher")
	}
	w.note("begin " + topic)
	msgs[0].Metadata["mark"] = "set"
	return context.WithValue(ctx, watcherKey{}, "inner"), func(err error) {
		if err != nil {
			w.note("end: " + err.Error())
			panic("watcher's end")
		}
		w.note("end")
	}
}
func (w *publishWatcher) Published(context.Context, bus.Publication) { w.note("published") }

// answering is a transport whose Publish the test answers.
type answering struct {
	bus.Transport
	publish func(ctx context.Context, msgs []*message.Message) error
}

func (r answering) Publish(ctx context.Context, _ string, msgs ...*message.Message) error {
	return r.publish(ctx, msgs)
}

func TestPublishObserver_isToldOfTheBeginAndTheEndOfAPublish(t *testing.T) {
	w := &publishWatcher{}
	var ctx context.Context
	var mark string
	answer := func() error { return nil }
	b, err := bus.New(answering{memory.New(memory.Config{}), func(c context.Context, msgs []*message.Message) error {
		ctx, mark = c, msgs[0].Metadata["mark"] //nolint:fatcontext // it is looked at once
		return answer()
	}}, bus.Config{Service: "test", Observers: []bus.Observer{w}})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()

	require.NoError(t, b.Publish(t.Context(), orderPaid{}))
	require.Equal(t, "inner", ctx.Value(watcherKey{}))
	require.Equal(t, "set", mark)
	require.Equal(t, []string{"begin order.paid.v1", "end", "published"}, w.events)

	answer = func() error { return errors.New("refused") }
	w.events = nil
	require.ErrorContains(t, b.Publish(t.Context(), orderPaid{}), "refused")
	require.Equal(t, []string{"begin order.paid.v1", "end: refused", "published"}, w.events)
	require.EqualValues(t, 1, b.Stats().ObserverPanics, "of its end")

	answer = func() error { panic("the transport") }
	w.events = nil
	require.PanicsWithValue(t, "the transport", func() { _ = b.Publish(t.Context(), orderPaid{}) })
	require.Len(t, w.events, 2, "its span ends, whatever happens")

	w.panics, answer = true, func() error { return nil }
	require.NoError(t, b.Publish(t.Context(), orderPaid{}))
	require.Nil(t, ctx.Value(watcherKey{}))
}

func TestWorkers_haveTheirGroupAsProfilerLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var label string
		var profile strings.Builder
		h := bustest.New(t, handlers.Func("ledger", func(ctx context.Context, _ orderPaid) error {
			label, _ = pprof.Label(ctx, "leat_group")
			return pprof.Lookup("goroutine").WriteTo(&profile, 1)
		}))
		h.Publish(orderPaid{})
		h.WaitIdle()
		require.Equal(t, "test.ledger", label)
		require.Contains(t, profile.String(), `"leat_group":"test.ledger"`)
	})
}
