package console_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// sent is an event of a stream.
type sent struct{ name, data string }

// stream reads a stream's events until the test ends.
func (s *shop) stream(t *testing.T, page string) <-chan sent {
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+page, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r) //nolint:bodyclose // the cleanup closes it
	require.NoError(t, err)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	require.NotEmpty(t, response.Header.Get("Content-Security-Policy"))
	events, ended := make(chan sent, 10_000), make(chan struct{})
	go func() {
		defer close(ended)
		var e sent
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "event":
				e.name = value
			case "data":
				e.data += value + "\n"
			case "":
				events <- e
				e = sent{}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = response.Body.Close()
	})
	return events
}

// await returns the first event that is as it should be.
func await(t *testing.T, events <-chan sent, want func(sent) bool) sent {
	t.Helper()
	end := time.After(patience)
	for {
		select {
		case e := <-events:
			if want(e) {
				return e
			}
		case <-end:
			require.Fail(t, "the event did not come")
		}
	}
}

func TestLive_sendsWhatHasChanged(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		events := s.stream(t, "live")
		of := s.stream(t, "live?"+query("group", group))
		await(t, events, func(e sent) bool { return e.name == "part" && strings.Contains(e.data, "Nothing needs attention") })
		s.poison(t, OrderPaid{Order: "o-1"})
		await(t, events, func(e sent) bool { return e.name == "part" && strings.Contains(e.data, "1 group needs") })
		await(t, of, func(e sent) bool { return e.name == "part" && strings.Contains(e.data, "<dt>Poisoned</dt><dd>1</dd>") })
	})
}

func TestTail_isEscapedAndBounded(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		s.failing.Store(false)
		events := s.stream(t, "tail-stream?"+query("pattern", "order.>"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // a tail begins shortly after its connection
			for ctx.Err() == nil {
				msg := message.NewMessage("1", []byte("<script>alert(1)</script>\r\n\r\nevent: part\r\ndata: forged"+strings.Repeat("x", 10_000)))
				msg.Metadata[driver.HeaderPartitionKey] = hostile
				msg.Metadata[driver.HeaderType] = "order.paid.v2"
				msg.Metadata[driver.HeaderID] = bus.NewID()
				_ = s.Transport().Publish(ctx, "order.paid.v2", msg)
			}
		}()
		m := await(t, events, func(e sent) bool { require.NotEqual(t, "part", e.name); return e.name == "message" })
		require.Contains(t, m.data, "&lt;script&gt;alert(1)")
		require.Contains(t, m.data, `\x0d\x0a`)
		require.Less(t, len(m.data), 4000)
		await(t, events, func(e sent) bool { return e.name == "left-out" && e.data != "0\n" })
		cancel()
	})
}

func TestTail_canBeReadWithoutJavaScript(t *testing.T) {
	s := newShop(t, "memory://", false)
	s.failing.Store(false)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	published := make(chan struct{})
	go func() {
		defer close(published)
		for i := 0; ctx.Err() == nil; i++ {
			_ = s.Publish(ctx, OrderPaid{Order: fmt.Sprint("o-", i)})
		}
	}()
	require.Eventually(t, func() bool { // if the machine does not pause while the page listens
		n := strings.Count(s.get(t, "tail?"+url.Values{"listen": {"5"}}.Encode()).body, "<tr><td")
		assert.LessOrEqual(t, n, 50)
		return n == 50
	}, patience, time.Millisecond)
	cancel()
	<-published
}

func TestStreams_areBounded(t *testing.T) {
	s := newShop(t, "memory://", false)
	for range 32 {
		<-s.stream(t, "live")
	}
	require.Equal(t, http.StatusServiceUnavailable, send(t, http.MethodGet, s.url+"live", nil).status)
}
