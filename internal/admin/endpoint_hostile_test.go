package admin_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// TestAdmin_boundsConnections: clients that never send a request take no more than 256 connections, and others are served
// when those have timed out.
func TestAdmin_boundsConnections(t *testing.T) {
	onPipes(t, token, func(t *testing.T, p *pipes, _ *bus.Bus) {
		const clients = 300
		var accepted atomic.Int64
		var ended sync.WaitGroup
		for range clients {
			ended.Go(func() {
				here, there := net.Pipe()
				p.connections <- there
				accepted.Add(1)
				_, _ = io.WriteString(here, "GET /health HTTP/1.1\r\n")
				_, _ = io.ReadAll(here) // until the server closes it
				_ = here.Close()
			})
		}
		synctest.Wait()
		require.EqualValues(t, 256, accepted.Load())
		began := time.Now()
		ended.Wait()
		require.Less(t, time.Since(began), 21*time.Second)
		require.EqualValues(t, clients, accepted.Load())
	})
}

// repeated is a body of n times the same text between two others. It takes no memory.
func repeated(before, text string, n int, after string) io.Reader {
	readers := []io.Reader{strings.NewReader(before)}
	for range n {
		readers = append(readers, strings.NewReader(text))
	}
	return io.MultiReader(append(readers, strings.NewReader(after))...)
}

// besieged is a service whose admin endpoint hostile clients call.
type besieged struct {
	url     string
	running context.Context // ends with the attacks
	client  *http.Client
}

// call sends a request. What comes of it does not matter.
func (s *besieged) call(method, path, token string, body io.Reader) {
	r, err := http.NewRequestWithContext(s.running, method, s.url+path, body)
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	if response, err := s.client.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
		_ = response.Body.Close()
	}
}

// raw sends a text, and reads until the server closes the connection.
func (s *besieged) raw(text string) {
	conn, err := new(net.Dialer).DialContext(s.running, "tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(s.running, func() { _ = conn.Close() })()
	_, _ = io.Copy(conn, strings.NewReader(text))
	_, _ = io.Copy(io.Discard, conn)
}

const (
	requestStart = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	postStart    = "POST /publish HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
	untilTimeout = "until a timeout: " // begins the name of an attack that ends with a timeout of the server
)

// withoutToken and withToken return attacks by their names.
func (s *besieged) withoutToken() map[string]func() {
	return map[string]func(){
		untilTimeout + "no header to the end": func() { s.raw(requestStart) },
		"no HTTP":                             func() { s.raw("\x16\x03\x01\x00\xff\r\n\r\n" + strings.Repeat("\x00", 1<<16)) },
		"a long header":                       func() { s.raw(requestStart + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n") },
		"many headers":                        func() { s.raw(requestStart + strings.Repeat("X: y\r\n", 100_000) + "\r\n") },
		"two lengths":                         func() { s.raw(requestStart + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nx") },
		"a slow body":                         func() { s.raw(postStart + "Content-Length: 9\r\n\r\n{") },
		"wrong tokens":                        func() { s.call("GET", "/groups", "wrong", nil) },
		"a large body":                        func() { s.call("POST", "/publish", "", repeated("[", strings.Repeat(" ", 1<<20), 33, "]")) },
	}
}

func (s *besieged) withToken() map[string]func() {
	record := `{"id":"1","topic":"order.` + strings.Repeat("x", 300) + `","headers":{"ce_id":"\u001b]0;\u0007","leat_fault_failures":"99999999999999999999"},"headers_base64":{"x":"/w=="},"data":"` +
		strings.Repeat("d", 64<<10) + `"},`
	return map[string]func(){
		untilTimeout + "a slow body": func() {
			s.raw(postStart + "Authorization: Bearer " + token + "\r\nContent-Length: 9\r\n\r\n{")
		},
		"a large body": func() {
			s.call("POST", "/publish", token, repeated(`{"headers":{"a":"b"},"data":"`, strings.Repeat("x", 1<<20), 2, `"}`))
		},
		"a deep body": func() {
			s.call("POST", "/poison/shop.ledger/put", token, repeated(`{"records":[`, strings.Repeat("[", 1<<20), 4, ""))
		},
		"records": func() {
			s.call("POST", "/poison/shop.ledger/put", token, repeated(`{"records":[`, record, 32, `{"x":1}]}`))
		},
		"many ids": func() {
			s.call("POST", "/poison/shop.ledger/replay", token, repeated(`{"ids":[`, strings.Repeat(`"1",`, 1<<18), 2, `"2"]}`))
		},
		"ids that are none": func() {
			s.call("POST", "/poison/shop.ledger/rm", token, strings.NewReader(`{"ids":[null,"","\u0000","-1"]}`))
		},
		"limits":   func() { s.call("GET", "/poison/shop.ledger?limit=99999999999999999999&after=%00%ff", token, nil) },
		"patterns": func() { s.call("GET", "/tail?pattern="+strings.Repeat("*.", 10_000), token, nil) },
		"groups that are not there": func() {
			s.call("GET", "/poison/..%2f..%2f"+strings.Repeat("g", 10_000)+"/%00", token, nil)
		},
	}
}

// TestAdmin_hostileClientsStopNobody: whatever clients send, with the token or without, the service handles its messages
// meanwhile, and its memory is bounded.
func TestAdmin_hostileClientsStopNobody(t *testing.T) {
	t.Run("without the token", func(t *testing.T) { besiege(t, (*besieged).withoutToken, 3, 128<<20) })
	// Two large bodies are read at once, and the decoder doubles its buffer.
	t.Run("with the token", func(t *testing.T) { besiege(t, (*besieged).withToken, 1, 256<<20) })
}

// besiege carries each attack out a number of times, by as many clients.
func besiege(t *testing.T, attacks func(*besieged) map[string]func(), each int64, mostHeap uint64) {
	const good = 200
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Stack: middleware.Standard(middleware.Config{}), Logger: quiet()})
	require.NoError(t, err)
	handled := make(chan string)
	running, stop := context.WithCancel(t.Context())
	defer stop()
	require.NoError(t, b.Handle(bus.Handler{
		Name: "ledger", Topics: []string{"order.paid.v1"}, Concurrency: 4,
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				select {
				case handled <- driver.MessageID(msg):
				case <-running.Done():
				}
				return nil, nil
			}
		},
	}))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }()
	server, err := admin.Endpoint{Addr: "127.0.0.1:0", Token: token, Bus: b, Logger: quiet()}.Start(t.Context())
	require.NoError(t, err)
	s := &besieged{url: server.URL(), running: running, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}

	var attackers sync.WaitGroup
	carriedOut := make(map[string]*atomic.Int64)
	for name, attack := range attacks(s) {
		n := new(atomic.Int64)
		carriedOut[name] = n
		for range each {
			attackers.Go(func() {
				for running.Err() == nil {
					if strings.HasPrefix(name, untilTimeout) {
						n.Add(each)
					}
					attack()
					n.Add(1)
				}
			})
		}
	}
	peak, published := uint64(0), 0
	missing := func() (names []string) {
		heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(heap)
		peak = max(peak, heap[0].Value.Uint64())
		for name, n := range carriedOut {
			if n.Load() < each {
				names = append(names, name)
			}
		}
		return names
	}
	next, deadline := time.NewTicker(time.Millisecond), time.After(patience)
	defer next.Stop()
	for ; published < good || len(missing()) > 0; published++ {
		id := fmt.Sprint("good", published)
		msg := message.NewMessage(id, []byte("{}"))
		msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop"}
		require.NoError(t, b.PublishMessages(t.Context(), msg))
		select {
		case got := <-handled:
			require.Equal(t, id, got)
		case <-deadline:
			require.Fail(t, "the service does not handle its messages, or not all attacks are carried out", "%d messages; missing: %q", published, missing())
		}
		<-next.C
	}
	stop()
	attackers.Wait()
	s.client.CloseIdleConnections()
	require.NoError(t, server.Stop(context.Background()))
	require.NoError(t, <-ended)
	t.Logf("%d messages handled, at most %d MiB of heap", published, peak>>20)
	require.Less(t, peak, mostHeap)
}
