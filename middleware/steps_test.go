package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
)

// Each step by itself, without a bus around it.

// returns returns a handler that answers so.
func returns(err error) message.HandlerFunc {
	return func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("produced", nil)}, err
	}
}

func TestRecover_returnsAPanicAsError(t *testing.T) {
	produced, err := middleware.Recover(func(*message.Message) ([]*message.Message, error) { panic(io.EOF) })(event("a"))
	require.Nil(t, produced)
	require.ErrorIs(t, err, io.EOF)
	var p *bus.PanicError
	require.ErrorAs(t, err, &p)
	require.Contains(t, p.Stack(), "TestRecover_returnsAPanicAsError")

	produced, err = middleware.Recover(returns(nil))(event("a"))
	require.NoError(t, err)
	require.Len(t, produced, 1)
	_, err = middleware.Recover(returns(errHandler))(event("a"))
	require.Equal(t, errHandler, err, "what is no panic is not touched")
}

func TestTimeout_boundsOneTry(t *testing.T) {
	call := func(msg *message.Message, fn func(context.Context) error) error {
		_, err := middleware.Timeout(time.Minute)(func(msg *message.Message) ([]*message.Message, error) {
			return nil, fn(msg.Context())
		})(msg)
		return err
	}
	synctest.Test(t, func(t *testing.T) {
		msg := event("a")
		outer := msg.Context()
		began := time.Now()
		err := call(msg, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		require.Equal(t, time.Minute, time.Since(began))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "timed out after 1m0s: context deadline exceeded")
		require.Equal(t, outer, msg.Context(), "what stands outside has its context again")

		require.NoError(t, call(msg, func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		}), "a handler that succeeds too late has succeeded")
		require.Equal(t, errHandler, call(msg, func(context.Context) error { return errHandler }), "in time, errors are not touched")

		ctx, cancel := context.WithCancel(t.Context())
		msg.SetContext(ctx)
		err = call(msg, func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		require.Equal(t, context.Canceled, err, "cancelled from outside is not timed out")

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		msg.SetContext(ctx)
		err = call(msg, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		require.Equal(t, context.DeadlineExceeded, err, "it was not this step's timeout")

		require.Panics(t, func() { _ = call(msg, func(context.Context) error { panic("boom") }) })
		require.Equal(t, ctx, msg.Context(), "after a panic, too")
	})
}

func TestObserve_withoutRecoverSeesPanics(t *testing.T) {
	var a audience
	_, err := middleware.Observe(&a)(func(msg *message.Message) ([]*message.Message, error) {
		require.Equal(t, 1, msg.Context().Value(audienceKey{}), "what Started returns is the handler's context")
		panic("boom")
	})(event("a"))
	require.EqualError(t, err, "panic: boom")
	require.Equal(t, []bus.Outcome{bus.Redelivered}, a.outcomes())
	require.ErrorContains(t, a.finished[0].Err, "boom")
}

func TestObserve_endsInReverseOrder(t *testing.T) {
	var order []string
	_, err := middleware.Observe(orderly{"outer", &order}, orderly{"inner", &order})(returns(nil))(event("a"))
	require.NoError(t, err)
	require.Equal(t, []string{"outer started", "inner started", "inner finished", "outer finished"}, order)

	synctest.Test(t, func(t *testing.T) {
		var first, second audience
		produced, err := middleware.Observe(&first, &second)(func(msg *message.Message) ([]*message.Message, error) {
			time.Sleep(time.Second)
			return returns(nil)(msg)
		})(event("a"))
		require.NoError(t, err)
		require.Len(t, produced, 1)
		for _, a := range []*audience{&first, &second} {
			require.Equal(t, []bus.Observation{{Outcome: bus.Handled, Took: time.Second}}, a.finished)
		}
	})
	_, err = middleware.Observe()(returns(errHandler))(event("a"))
	require.Equal(t, errHandler, err, "without an observer it is not there")
}

// orderly is an observer that says when it is called.
type orderly struct {
	name string
	log  *[]string
}

func (o orderly) Published(context.Context, bus.Publication) {}

func (o orderly) Started(ctx context.Context, _ *bus.Delivery) context.Context {
	*o.log = append(*o.log, o.name+" started")
	return ctx
}

func (o orderly) Finished(context.Context, *bus.Delivery, bus.Observation) {
	*o.log = append(*o.log, o.name+" finished")
}

func TestPoison_passesTemporaryErrors(t *testing.T) {
	var published publisher
	step := middleware.Poison(middleware.PoisonConfig{Publisher: &published, Topic: "dead"})
	for name, err := range map[string]error{
		"a redelivery": &bus.Redelivery{After: 1, Err: errHandler},
		"a snooze":     bus.Snooze(1),
		"a discard":    bus.Discard(errHandler),
	} {
		produced, got := step(returns(err))(event("a"))
		require.Equal(t, err, got, name)
		require.Nil(t, produced, name)
	}
	produced, err := step(returns(nil))(event("a"))
	require.NoError(t, err)
	require.Len(t, produced, 1)
	require.Empty(t, published.messages)

	msg := event("a")
	ctx, cancel := context.WithCancel(t.Context())
	msg.SetContext(ctx)
	cancel()
	_, err = step(returns(errHandler))(msg)
	require.Equal(t, errHandler, err, "what shutdown has interrupted")
	require.Empty(t, published.messages)
}

// publisher keeps what it is to publish, or refuses it.
type publisher struct {
	topic    string
	messages []*message.Message
	err      error
	check    func(context.Context)
}

func (p *publisher) Publish(topic string, msgs ...*message.Message) error {
	if p.err != nil {
		return p.err
	}
	if p.check != nil {
		p.check(msgs[0].Context())
	}
	p.topic = topic
	p.messages = append(p.messages, msgs...)
	return nil
}

func (p *publisher) Close() error { return nil }

func TestPoison_publishesToATopic(t *testing.T) {
	var published publisher
	msg := event("a", "tenant", "acme")
	msg.Payload = []byte("payload")
	produced, err := middleware.Poison(middleware.PoisonConfig{Publisher: &published, Topic: "dead"})(returns(errHandler))(msg)
	require.NoError(t, err, "it is acked")
	require.Nil(t, produced, "what the failed handler produced is not published")
	require.Equal(t, "dead", published.topic)
	dead := published.messages[0]
	require.Equal(t, "payload", string(dead.Payload))
	require.Equal(t, "acme", dead.Metadata["tenant"])
	require.Equal(t, "handler failed", driver.FaultOf(dead.Metadata).Text)
	require.Equal(t, 1, driver.FaultOf(dead.Metadata).Tries)
	require.NotContains(t, msg.Metadata, driver.HeaderFaultError, "the message itself stays as it is")
	require.Equal(t, bus.Poisoned, bus.DeliveryFrom(msg.Context()).Outcome(nil))
	require.Equal(t, errHandler, bus.DeliveryFrom(msg.Context()).Cause())
}

func TestPoison_acksOnlyAfterConfirmation(t *testing.T) {
	away := errors.New("away")
	for name, cfg := range map[string]middleware.PoisonConfig{
		"away":                              {Publisher: &publisher{err: away}, Topic: "dead"},
		"no poison publisher is configured": {},
	} {
		msg := event("a")
		_, err := middleware.Poison(cfg)(returns(errHandler))(msg)
		require.ErrorIs(t, err, errHandler)
		require.ErrorContains(t, err, name)
		r, ok := errors.AsType[*bus.Redelivery](err)
		require.True(t, ok)
		require.True(t, r.Uncounted)
		require.Equal(t, bus.Redelivered, bus.DeliveryFrom(msg.Context()).Outcome(err))
	}
}

func TestPoison_ignoresTheHandlersContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		published := publisher{check: func(ctx context.Context) {
			require.NoError(t, ctx.Err())
			_, bounded := ctx.Deadline()
			require.True(t, bounded, "but it does not take for ever")
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		msg := event("a")
		msg.SetContext(ctx)
		_, err := middleware.Poison(middleware.PoisonConfig{Publisher: &published, Topic: "dead"})(func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			return nil, errHandler
		})(msg)
		require.NoError(t, err)
		require.Len(t, published.messages, 1)
	})
}

func TestRetry_withoutOtherSteps(t *testing.T) {
	policy := bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Second, time.Hour}, Jitter: -1}
	run := func(d *bus.Delivery, fail func(n int) error) (n int, took time.Duration, err error) {
		msg := event("a")
		if d != nil {
			d.Message = msg
			msg.SetContext(d.NewContext(context.Background()))
		}
		began := time.Now()
		_, err = middleware.Retry(policy)(func(*message.Message) ([]*message.Message, error) {
			n++
			return nil, fail(n)
		})(msg)
		return n, time.Since(began), err
	}
	always := func(int) error { return errHandler }

	synctest.Test(t, func(t *testing.T) {
		n, took, err := run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 1, Settler: settler{}}}, always)
		require.Equal(t, 3, n)
		require.Equal(t, 1001*time.Millisecond, took)
		r, ok := errors.AsType[*bus.Redelivery](err)
		require.True(t, ok)
		require.Equal(t, &bus.Redelivery{After: time.Hour, Err: errHandler}, r)

		n, took, err = run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 2, History: driver.History{Failures: 3}, Settler: settler{}}}, always)
		require.Equal(t, 1, n)
		require.Zero(t, took)
		require.Equal(t, errHandler, err, "the policy is through")

		n, _, err = run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 2, History: driver.History{Failures: driver.FailuresUnknown}, Settler: settler{}}}, always)
		require.Equal(t, 1, n, "an older version of leat has redelivered it")
		require.Equal(t, errHandler, err)

		n, _, err = run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 6, Settler: settler{}}}, always)
		require.Equal(t, 3, n, "crashes cost no try")
		require.ErrorIs(t, err, errHandler)

		n, _, err = run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 10, History: driver.History{Failures: 4}, Settler: settler{}}}, always)
		require.Equal(t, 1, n, "five crashes, too")
		require.Equal(t, errHandler, err)

		n, _, err = run(&bus.Delivery{Delivery: driver.Delivery{Attempt: 7, Settler: settler{}}}, always)
		require.Zero(t, n, "up to the crash limit")
		require.True(t, bus.IsPermanent(err))

		n, took, err = run(nil, always)
		require.Equal(t, 3, n, "a stock router can't delay: the tries end where the first long delay would begin")
		require.Equal(t, 1001*time.Millisecond, took)
		require.Equal(t, errHandler, err)

		for _, end := range []error{bus.Permanent(errHandler), bus.Discard(errHandler), bus.Snooze(time.Minute)} {
			n, _, err = run(nil, func(int) error { return end })
			require.Equal(t, 1, n)
			require.Equal(t, end, err)
		}
	})
}

func TestRetry_doesNotWaitAfterTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		msg := event("a")
		ctx, cancel := context.WithCancel(t.Context())
		msg.SetContext(ctx)
		n := 0
		time.AfterFunc(time.Second, cancel)
		_, err := middleware.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Hour}, InProcess: time.Hour})(func(*message.Message) ([]*message.Message, error) {
			n++
			return nil, errHandler
		})(msg)
		require.Equal(t, 1, n)
		r, ok := errors.AsType[*bus.Redelivery](err)
		require.True(t, ok)
		require.False(t, r.Uncounted, "or a step with a limit would give it back for ever")
		require.ErrorIs(t, err, errHandler)
	})
}

func TestLog_levels(t *testing.T) {
	for name, c := range map[string]struct {
		o    bus.Observation
		want []string
	}{
		"poisoned":    {bus.Observation{Outcome: bus.Poisoned, Err: errors.New("two\nlines")}, []string{"level=ERROR", `msg="leat: poisoned"`, `error="two lines"`}},
		"a panic":     {bus.Observation{Outcome: bus.Poisoned, Err: driver.NewPanicError("boom")}, []string{"level=ERROR", `error="panic: boom"`, "stack=", "steps_test.go"}},
		"redelivered": {bus.Observation{Outcome: bus.Redelivered, Err: &bus.Redelivery{Err: errHandler}}, []string{"level=WARN", "handler failed"}},
		"discarded":   {bus.Observation{Outcome: bus.Discarded, Err: errHandler}, []string{"level=WARN", "leat: discarded"}},
		"other event": {bus.Observation{Outcome: bus.Discarded, Err: bus.Discard(&bus.OtherEventError{})}, nil},
		"interrupted": {bus.Observation{Outcome: bus.Interrupted, Err: errHandler}, []string{"level=INFO"}},
		"snoozed":     {bus.Observation{Outcome: bus.Redelivered, Err: bus.Snooze(1)}, nil},
		"handled":     {bus.Observation{Outcome: bus.Handled}, nil},
		"a duplicate": {bus.Observation{Outcome: bus.Duplicate}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var text bytes.Buffer
			d := &bus.Delivery{Delivery: driver.Delivery{Message: event("id-1", driver.HeaderType, orderTopic), Group: "shop.ledger", Attempt: 2}, Try: 5}
			middleware.Log(slog.New(slog.NewTextHandler(&text, nil))).Finished(t.Context(), d, c.o)
			if c.want == nil {
				require.Empty(t, text.String())
				return
			}
			for _, want := range append(c.want, "group=shop.ledger", "type=order.placed.v1", "message_id=id-1", "correlation_id=id-1", "attempt=2", "try=5") {
				require.Contains(t, text.String(), want)
			}
			require.Equal(t, 1, bytes.Count(text.Bytes(), []byte("\n")), "one line")
		})
	}
	var text bytes.Buffer
	l := middleware.Log(slog.New(slog.NewTextHandler(&text, nil)))
	l.Published(t.Context(), bus.Publication{Topic: orderTopic})
	require.Empty(t, text.String())
	l.Published(t.Context(), bus.Publication{Topic: orderTopic, Messages: make([]*message.Message, 3), Err: errHandler})
	require.Contains(t, text.String(), `level=ERROR msg="leat: publish failed" topic=order.placed.v1 messages=3 duration=0s error="handler failed"`)
}

func (orderly) BreakerChanged(bus.BreakerChange) {}
