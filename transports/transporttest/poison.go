package transporttest

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

var errBroken = errors.New("the handler is broken")

// testPoison tests promise 11.
func testPoison(t *testing.T, h Harness) {
	w := newWorld(t, h)
	transport := w.open()
	if !transport.Capabilities().Poison {
		t.Skip("this transport has no poison queue to look into, and says so")
	}
	topic := w.topic("order.paid.v1")
	ledger := w.subscribe(transport, w.subscription("ledger", topic))
	mail := w.subscribe(transport, w.subscription("mail", topic))
	queue := w.another(transport).PoisonQueue(w.group("ledger"))

	n, err := queue.Len(w.ctx)
	require.NoError(t, err)
	require.Zero(t, n)

	began := time.Now()
	published := ids("m", 7)
	w.publish(transport, topic, published...)
	for range published {
		d := w.next(ledger)
		d.Attempt = 3
		require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
	}
	w.nothing(ledger, 50*time.Millisecond)
	require.Equal(t, published, w.collect(mail, len(published)), "another group is not disturbed")

	all := w.listPoisoned(queue, 3)
	require.Equal(t, published, messageIDs(all))
	first, err := queue.Get(w.ctx, all[0].ID)
	require.NoError(t, err)
	require.Equal(t, "m-0000", driver.MessageID(first.Message))
	require.JSONEq(t, `{"id":"m-0000"}`, string(first.Message.Payload))
	require.Equal(t, topic, first.Message.Metadata[driver.HeaderType])
	require.Equal(t, errBroken.Error(), first.Fault.Text)
	require.Equal(t, 3, first.Fault.Attempts)
	require.Equal(t, w.group("ledger"), first.Fault.Group)
	require.Equal(t, topic, first.Fault.Topic)
	require.WithinRange(t, first.Fault.At, began.Add(-time.Minute), time.Now().Add(time.Minute))
	require.Equal(t, first.Fault.Text, driver.FaultOf(first.Message.Metadata).Text, "the headers tell it too")
	require.Equal(t, published, messageIDs(w.listPoisoned(queue, 100)), "looking changes nothing")

	// Replay two: to their own group only, fresh.
	moved := 0
	progress := driver.WithProgress(w.ctx, func(n int) { moved += n })
	n, err = queue.Replay(progress, all[1].ID, all[4].ID)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, 2, moved)
	var replayed []string // in any order: the group has none for messages that come back
	for range 2 {
		d := w.next(ledger)
		replayed = append(replayed, driver.MessageID(d.Message))
		require.Equal(t, 1, d.Attempt)
		require.Equal(t, topic, d.Topic)
		for key := range d.Message.Metadata {
			require.NotContains(t, key, "leat_fault")
		}
		w.ack(d)
	}
	require.ElementsMatch(t, []string{"m-0001", "m-0004"}, replayed)
	w.nothing(mail, 50*time.Millisecond)

	// Drop one, and one that is not there.
	moved = 0
	n, err = queue.Drop(progress, all[0].ID, all[1].ID)
	require.ErrorIs(t, err, driver.ErrNotFound)
	require.Equal(t, 1, n)
	require.Equal(t, 1, moved)
	require.Equal(t, []string{"m-0002", "m-0003", "m-0005", "m-0006"}, messageIDs(w.listPoisoned(queue, 2)))
	n, err = queue.Len(w.ctx)
	require.NoError(t, err)
	require.Equal(t, 4, n)
	_, err = queue.Get(w.ctx, all[0].ID)
	require.ErrorIs(t, err, driver.ErrNotFound)
	_, err = queue.Replay(w.ctx, "no such id")
	require.ErrorIs(t, err, driver.ErrNotFound)

	testRecord(w, transport)

	// A replayed message may be poisoned again.
	n, err = queue.Replay(w.ctx, all[2].ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	d := w.next(ledger)
	require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
	require.ElementsMatch(t, []string{"m-0002", "m-0003", "m-0005", "m-0006"}, messageIDs(w.listPoisoned(queue, 100)))
}

// testPut tests promise 11 for an operator who changes messages and imports others.
func testPut(t *testing.T, h Harness) {
	w := newWorld(t, h)
	transport := w.open()
	if !transport.Capabilities().Poison {
		t.Skip("this transport has no poison queue to look into, and says so")
	}
	topic := w.topic("order.paid.v1")
	ledger := w.subscribe(transport, w.subscription("ledger", topic))
	queue := w.another(transport).PoisonQueue(w.group("ledger"))
	w.publish(transport, topic, ids("m", 3)...)
	for range 3 {
		d := w.next(ledger)
		require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
	}
	before := w.listPoisoned(queue, 100)

	changed := before[1]
	changed.Message = changed.Message.Copy()
	changed.Message.Payload = []byte("\x00mended")
	changed.Message.Metadata["tenant"] = "a=b\nc"
	require.NoError(t, queue.Put(w.ctx, changed))
	after := w.listPoisoned(queue, 100)
	require.Equal(t, messageIDs(before), messageIDs(after), "it keeps its place")
	require.Equal(t, changed.ID, after[1].ID)
	require.Equal(t, changed.Message.Payload, after[1].Message.Payload)
	require.Equal(t, changed.Message.Metadata, after[1].Message.Metadata)
	require.Equal(t, before[0].Message.Payload, after[0].Message.Payload)

	bare := driver.PoisonedMessage{ID: before[2].ID, Message: message.NewMessage("m-0002", []byte(`{"id":"m-0002"}`))}
	bare.Message.Metadata[driver.HeaderType] = topic // one header: its order can't differ
	require.NoError(t, queue.Put(w.ctx, bare))
	require.NoError(t, queue.Put(w.ctx, bare), "it is so already")

	added := driver.PoisonedMessage{Message: before[0].Message.Copy()}
	added.Message.UUID = "m-0009"
	added.Message.Metadata[driver.HeaderID] = "m-0009"
	gone := changed
	gone.ID = "no such id"
	require.ErrorIs(t, queue.Put(w.ctx, gone, added), driver.ErrNotFound)
	after = w.listPoisoned(queue, 100)
	require.Equal(t, []string{"m-0000", "m-0001", "m-0002", "m-0009"}, messageIDs(after))
	require.Equal(t, before[0].Fault, after[3].Fault)

	var all []string
	for _, p := range after {
		all = append(all, p.ID)
	}
	n, err := queue.Replay(w.ctx, append(all, "no such id")...)
	require.ErrorIs(t, err, driver.ErrNotFound)
	require.Equal(t, 4, n)
	var replayed []string // in any order: the group has none for messages that come back
	for range 4 {
		d := w.next(ledger)
		id := driver.MessageID(d.Message)
		replayed = append(replayed, id)
		require.Equal(t, topic, d.Topic)
		require.Equal(t, 1, d.Attempt)
		if id == "m-0001" {
			require.Equal(t, changed.Message.Payload, d.Message.Payload)
			require.Equal(t, "a=b\nc", d.Message.Metadata["tenant"])
		}
		w.ack(d)
	}
	require.ElementsMatch(t, append(ids("m", 3), "m-0009"), replayed)
	n, err = queue.Len(w.ctx)
	require.NoError(t, err)
	require.Zero(t, n)

	nowhere := driver.PoisonedMessage{Message: message.NewMessage("x", nil)}
	require.Error(t, queue.Put(w.ctx, nowhere), "it belongs to no topic")
	require.NoError(t, queue.Put(w.ctx))
}

// testRecord poisons a message with unusual bytes and headers that has panicked, has failed before and was redelivered. The
// record has all of that, and the message is unchanged in it and after a replay.
func testRecord(w *world, transport driver.Transport) {
	topic := w.topic("record.made.v1")
	receiver := w.subscribe(transport, w.subscription("record", topic))
	msg := newMessage(topic, "m-record")
	msg.Payload = []byte("\x00\xff{not json\r\n")
	msg.Metadata["Grüße"] = "a=b\nc"
	msg.Metadata["empty"] = ""
	msg.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	payload, headers := slices.Clone(msg.Payload), maps.Clone(msg.Metadata)
	require.NoError(w, transport.Publish(w.ctx, topic, msg))
	untouched := func(m *message.Message) {
		w.Helper()
		require.Equal(w, string(payload), string(m.Payload))
		require.Equal(w, headers, m.Metadata)
	}

	d := w.next(receiver)
	require.Zero(w, d.FailedSince)
	require.Zero(w, d.Failures)
	failed := time.Now().Add(-time.Minute).UTC()
	d.FailedSince, d.Failures = failed, 3
	require.NoError(w, d.Settler.Redeliver(20*time.Millisecond))
	d = w.next(receiver)
	require.True(w, failed.Equal(d.FailedSince), "%s is not %s", d.FailedSince, failed)
	require.Equal(w, 3, d.Failures)
	untouched(d.Message)
	d.Failures, d.WaitingSince = 4, failed.Add(time.Second)
	require.NoError(w, d.Settler.GiveBack(0))
	d = w.next(receiver)
	require.True(w, failed.Equal(d.FailedSince), "given back at once: %s is not %s", d.FailedSince, failed)
	require.Equal(w, 4, d.Failures, "given back at once")
	require.True(w, failed.Add(time.Second).Equal(d.WaitingSince))
	untouched(d.Message)
	d.Failures, d.WaitingSince, d.DueAgain = 0, time.Time{}, failed.Add(time.Hour)
	require.NoError(w, d.Settler.GiveBack(50*time.Millisecond))
	d = w.next(receiver)
	require.True(w, failed.Equal(d.FailedSince), "given back: %s is not %s", d.FailedSince, failed)
	require.Zero(w, d.Failures, "a count of zero is known, too")
	require.Zero(w, d.WaitingSince, "it waits no more")
	require.True(w, failed.Add(time.Hour).Equal(d.DueAgain), "it was snoozed until then")
	untouched(d.Message)
	d.Message.Metadata["by the handler"] = "is not kept"
	require.NoError(w, d.Settler.Poison(w.ctx, driver.NewFault(d, panicked())))

	queue := w.another(transport).PoisonQueue(w.group("record"))
	list, err := queue.List(w.ctx, "", 10)
	require.NoError(w, err)
	require.Len(w, list, 1)
	record, err := queue.Get(w.ctx, list[0].ID)
	require.NoError(w, err)
	for _, m := range []driver.PoisonedMessage{list[0], record} {
		require.Equal(w, "panic: the handler is broken", m.Fault.Text)
		require.Contains(w, m.Fault.Stack, "transporttest.panicked")
		require.LessOrEqual(w, len(m.Fault.Stack), 4<<10)
		require.Equal(w, "0af7651916cd43dd8448eb211c80319c", m.Fault.TraceID)
		require.Equal(w, `panic(*errors.errorString) > "the handler is broken"`, m.Fault.Chain)
		require.True(w, failed.Equal(m.Fault.FailedAt))
		require.True(w, m.Fault.At.After(m.Fault.FailedAt))
		require.Equal(w, string(payload), string(m.Message.Payload))
		beside := maps.Clone(m.Message.Metadata)
		maps.DeleteFunc(beside, func(name, _ string) bool { return strings.HasPrefix(name, "leat_fault_") })
		require.Equal(w, headers, beside, "the message's own headers")
	}

	n, err := queue.Replay(w.ctx, record.ID)
	require.NoError(w, err)
	require.Equal(w, 1, n)
	d = w.next(receiver)
	untouched(d.Message)
	require.Zero(w, d.History, "a replayed message has not failed")
	w.ack(d)
}

// panicked returns a handler's panic, deep in recursion.
func panicked() (err error) {
	defer func() { err = driver.NewPanicError(recover()) }()
	var fall func(int)
	fall = func(n int) {
		if n == 0 {
			panic(errBroken)
		}
		fall(n - 1)
	}
	fall(100)
	return nil
}

// listPoisoned pages through a poison queue.
func (w *world) listPoisoned(queue driver.PoisonQueue, page int) []driver.PoisonedMessage {
	w.Helper()
	var all []driver.PoisonedMessage
	after := ""
	for {
		list, err := queue.List(w.ctx, after, page)
		require.NoError(w, err)
		if len(list) == 0 {
			return all
		}
		require.LessOrEqual(w, len(list), page)
		all = append(all, list...)
		after = list[len(list)-1].ID
	}
}

func messageIDs(list []driver.PoisonedMessage) []string {
	ids := make([]string, len(list))
	for i, p := range list {
		ids[i] = driver.MessageID(p.Message)
	}
	return ids
}
