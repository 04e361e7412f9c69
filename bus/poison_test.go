package bus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

func TestErrorChain_hasEveryWrappedError(t *testing.T) {
	busy := errors.New("busy")
	for want, err := range map[string]error{
		``:                           nil,
		`"EOF"`:                      fmt.Errorf("read: %w", io.EOF),
		`"busy"`:                     bus.Permanent(bus.RetryAfter(fmt.Errorf("charge: %w", busy), time.Second)),
		`*bus_test.declined`:         &bus.Redelivery{Err: &declined{51}},
		`*bus_test.wrapping > "EOF"`: &wrapping{io.EOF},
		`*fs.PathError > syscall.Errno`: func() error {
			_, err := os.Open("/no/such/file")
			return fmt.Errorf("config: %w", err)
		}(),
		`context.deadlineExceededError`:                  context.DeadlineExceeded,
		`panic(*bus_test.declined) > *bus_test.declined`: driver.NewPanicError(&declined{51}),
		`panic(string)`:       driver.NewPanicError("boom"),
		`*bus_test.declined `: errors.Join(&declined{1}, busy),
	} {
		require.Equal(t, strings.TrimSpace(want), driver.ErrorChain(err))
	}
	var deep error = &declined{1}
	for range 100 {
		deep = &wrapping{deep}
	}
	require.LessOrEqual(t, len(driver.ErrorChain(deep)), 512)
	require.NotContains(t, driver.ErrorChain(errors.New("two\nlines")), "\n")
}

func TestPoison_stackIsOnlyInTheRecord(t *testing.T) {
	msg := newMessage(paidTopic, "m-1")
	msg.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	d := &bus.Delivery{Delivery: driver.Delivery{Message: msg, Attempt: 2, History: driver.History{FailedSince: time.Now().Add(-time.Hour)}}}
	fault := driver.NewFault(&d.Delivery, fmt.Errorf("ledger: %w", fall(200)))
	require.Contains(t, fault.Stack, "bus_test.fall")
	require.LessOrEqual(t, len(fault.Stack), 4<<10)
	require.True(t, strings.HasSuffix(fault.Stack, "\n"), "whole lines")

	travels, record := message.Metadata{}, message.Metadata{}
	fault.Set(travels)
	fault.Record(record)
	require.NotContains(t, travels, driver.HeaderFaultStack)
	require.Equal(t, fault.Stack, record[driver.HeaderFaultStack])
	delete(record, driver.HeaderFaultStack)
	require.Equal(t, travels, record, "nothing else is different")
	for name, value := range travels {
		require.LessOrEqual(t, len(value), 1024, name)
	}

	fault.Record(record)
	back := driver.FaultOf(record)
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", back.TraceID)
	require.Equal(t, fault.Chain, back.Chain)
	require.True(t, d.FailedSince.Equal(back.FailedAt), "the first failure")
	require.WithinDuration(t, time.Now(), back.At, time.Minute, "the last")
	driver.ClearFault(record)
	require.Empty(t, record)
}

// fall panics that deep.
func fall(n int) (err error) {
	if n > 0 {
		return fall(n - 1)
	}
	defer func() { err = driver.NewPanicError(recover()) }()
	panic(io.EOF)
}

func TestSetHistory_isReadBackByTakeHistory(t *testing.T) {
	headers := message.Metadata{"own": "1"}
	driver.SetHistory(headers, driver.History{})
	require.Len(t, headers, 1, "nothing to note")
	require.Zero(t, driver.TakeHistory(headers))

	now := time.Now().UTC().Round(0)
	for _, h := range []driver.History{
		{FailedSince: now},
		{FailedSince: now, Failures: 3},
		{FailedSince: now, Failures: driver.FailuresUnknown},
		{WaitingSince: now},
		{DueAgain: now},
		{FailedSince: now, Failures: 2, WaitingSince: now.Add(time.Hour)},
	} {
		driver.SetHistory(headers, h)
		require.Equal(t, h, driver.TakeHistory(headers))
		require.Equal(t, message.Metadata{"own": "1"}, headers)
	}
}

func TestTakeHistory_ofMessagesThatOthersWrote(t *testing.T) {
	for text, want := range map[string]int{"": driver.FailuresUnknown, "many": driver.FailuresUnknown, "-3": 0, "-9223372036854775808": 0, "99999999999999999999": driver.FailuresUnknown} {
		headers := message.Metadata{driver.HeaderFaultFailedAt: "2026-01-02T03:04:05Z", driver.HeaderFaultFailures: text}
		if text == "" {
			delete(headers, driver.HeaderFaultFailures)
		}
		require.Equal(t, want, driver.TakeHistory(headers).Failures, text)
		require.Empty(t, headers)
	}
}
