package console_test

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience bounds what must come.
const patience = 2 * time.Minute

type OrderPaid struct {
	Order string `json:"order"`
	Note  string `json:"note,omitempty"`
}

func (OrderPaid) EventType() (string, int) { return "order.paid", 2 }

type OldOrderPaid struct {
	ID string `json:"id"`
}

func (OldOrderPaid) EventType() (string, int) { return "order.paid", 1 }

var errDeclined = errors.New("card declined")

// shop is a service with a console.
type shop struct {
	*bus.Bus
	stack   middleware.Stack
	failing atomic.Bool
	handled atomic.Int64
	url     string // of the console, with a slash at its end
}

// group has all of the shop's poisoned messages.
const group = "shop.send-receipt"

// eachTransport runs a test on a transport in memory and on a durable one.
func eachTransport(t *testing.T, test func(t *testing.T, s *shop)) {
	for name, rawURL := range map[string]string{"memory": "memory://", "sqlite": "sqlite:" + filepath.Join(t.TempDir(), "shop.db")} {
		t.Run(name, func(t *testing.T) { test(t, newShop(t, rawURL, true)) })
	}
}

func newShop(t *testing.T, rawURL string, actions bool) *shop {
	s := &shop{}
	s.failing.Store(true)
	transport, err := transports.Open(t.Context(), rawURL)
	require.NoError(t, err)
	s.stack = middleware.Standard(middleware.Config{Upcasters: []middleware.Upcaster{
		middleware.Upcast(func(o OldOrderPaid) OrderPaid { return OrderPaid{Order: o.ID} }),
	}})
	quiet := slog.New(slog.DiscardHandler)
	s.Bus, err = bus.New(transport, bus.Config{Service: "shop", Stack: s.stack, Logger: quiet})
	require.NoError(t, err)
	require.NoError(t, s.Handle(handlers.Func("send-receipt", func(_ context.Context, o OrderPaid) error {
		if s.failing.Load() {
			return bus.Permanent(fmt.Errorf("order %s: %w", o.Order, errDeclined))
		}
		s.handled.Add(1)
		return nil
	})))
	running := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { running <- s.Run(ctx) }()
	<-s.Running()
	server := httptest.NewServer(console.New(console.Config{Bus: s.Bus, Stack: s.stack, Actions: actions, Logger: quiet}))
	s.url = server.URL + "/"
	t.Cleanup(func() {
		server.Close()
		stop()
		require.NoError(t, <-running)
		require.NoError(t, s.Close(context.Background()))
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// poison publishes orders, and returns when they are poisoned.
func (s *shop) poison(t *testing.T, orders ...OrderPaid) {
	for _, o := range orders {
		before := s.poisoned(t)
		require.NoError(t, s.Publish(t.Context(), o, bus.WithKey(o.Order)))
		s.awaitPoisoned(t, before+1)
	}
}

func (s *shop) awaitPoisoned(t *testing.T, want int) {
	require.Eventually(t, func() bool { return s.poisoned(t) == want }, patience, 5*time.Millisecond)
}

func (s *shop) poisoned(t *testing.T) int {
	n, err := s.Transport().PoisonQueue(group).Len(t.Context())
	require.NoError(t, err)
	return n
}

// awaitText reads a page until it has a text: what it shows may be a second old.
func (s *shop) awaitText(t *testing.T, page, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.get(t, page).text, text) }, patience, 50*time.Millisecond, text)
}

// place is where this process runs, as message systems show it.
var place = func() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}()

// first returns the id of the first poisoned message.
func (s *shop) first(t *testing.T) string {
	all, err := s.Transport().PoisonQueue(group).List(t.Context(), "", 1)
	require.NoError(t, err)
	require.NotEmpty(t, all)
	return all[0].ID
}

// answer is a response of the console.
type answer struct {
	status int
	header http.Header
	body   string // as it is
	text   string // what one reads
}

var tags = regexp.MustCompile(`(?s)<[^>]*>`)

func send(t *testing.T, method, address string, form url.Values, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	require.NoError(t, err)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NotEmpty(t, response.Header.Get("Content-Security-Policy"), address)
	require.Contains(t, response.Header.Get("Content-Security-Policy"), "default-src 'none'")
	text := strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(string(body), " "))), " ")
	return answer{response.StatusCode, response.Header, string(body), text}
}

func (s *shop) get(t *testing.T, page string) answer {
	t.Helper()
	a := send(t, http.MethodGet, s.url+page, nil)
	require.Equal(t, http.StatusOK, a.status, "%s: %s", page, a.text)
	return a
}

// query returns a query string of pairs.
func query(pairs ...string) string {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Add(pairs[i], pairs[i+1])
	}
	return values.Encode()
}

func TestPages_showGroupsQueueAndMessage(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		require.Contains(t, s.get(t, "").text, "Nothing needs attention")
		s.poison(t, OrderPaid{Order: "o-1", Note: "<b>bold</b>"}, OrderPaid{Order: "o-2"})

		var overview answer
		require.Eventually(t, func() bool { // the sample may be a second old
			overview = s.get(t, "")
			return strings.Contains(overview.text, "1 group needs attention")
		}, patience, 50*time.Millisecond)
		require.Contains(t, overview.text, group)
		require.Contains(t, overview.text, "order.paid")

		list := s.get(t, "group?"+query("group", group))
		require.Contains(t, list.text, "2 messages")
		require.Contains(t, list.text, "order o-1: card declined")
		require.Contains(t, list.text, "50ms 250ms 1s | 5s 30s 5m 30m")
		_, lists := s.Transport().(driver.ConsumerLister)
		require.Equal(t, lists, strings.Contains(list.text, "Consumers Where Program Topics "+place), list.text)
		require.Contains(t, s.get(t, "group?"+query("group", group, "key", "o-2")).text, "1 message matches")
		require.Contains(t, s.get(t, "group?"+query("group", group, "class", "none")).text, "No poisoned message matches.")
		require.Contains(t, s.get(t, "group?"+query("group", group, "text", "bold", "since", "1h", "type", "order.paid.v2")).text, "1 message matches")

		message := s.get(t, "message?"+query("group", group, "id", s.first(t)))
		require.Contains(t, message.text, "order.paid.v2")
		require.Contains(t, message.text, "after 1 delivery and 1 try")
		require.Contains(t, message.text, `"note": "\u003cb\u003ebold\u003c/b\u003e"`)
		payload := s.get(t, "payload?"+query("group", group, "id", s.first(t)))
		require.Equal(t, `{"order":"o-1","note":"\u003cb\u003ebold\u003c/b\u003e"}`, payload.body)
		require.Equal(t, `attachment; filename="payload"`, payload.header.Get("Content-Disposition"))

		wiring := s.get(t, "wiring")
		require.Contains(t, wiring.text, "order.paid.v1 → order.paid.v2")
		require.Contains(t, wiring.text, "observe poison dedup")
		require.Contains(t, s.get(t, "doctor").text, "group "+group)
		require.Contains(t, s.get(t, "outbox").text, "There is no outbox here.")
	})
}

func TestOverview_showsTheTimeOfDeliveries(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		latency := regexp.MustCompile(`<td class="n">[0-9.]+ (µs|ms|s) / [0-9.]+ (µs|ms|s)</td>`)
		require.NotRegexp(t, latency, s.get(t, "").body, "nothing was delivered")
		s.poison(t, OrderPaid{Order: "o-1"})
		require.Eventually(t, func() bool { // the sample may be a second old
			return latency.MatchString(s.get(t, "").body)
		}, patience, 50*time.Millisecond)

		// Only the service's process knows it.
		server := httptest.NewServer(console.New(console.Config{Transport: s.Transport(), Logger: slog.New(slog.DiscardHandler)}))
		defer server.Close()
		s.url = server.URL + "/"
		overview := s.get(t, "")
		require.Contains(t, overview.text, "Time, p50 / p99")
		require.Contains(t, overview.body, `<td class="n"></td>`)
		require.NotRegexp(t, latency, overview.body)
	})
}

// hostile is what a foreign producer may write.
const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>` + "\u202e\x1b[31m{{.}}`${1}`"

func TestPages_escapeHostileText(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		msg := message.NewMessage("1", []byte(hostile))
		for _, name := range []string{driver.HeaderID, driver.HeaderSource, driver.HeaderSubject, driver.HeaderPartitionKey, driver.HeaderCorrelationID, "x-note", hostile} {
			msg.Metadata[name] = hostile
		}
		msg.Metadata[driver.HeaderTraceParent] = "00-" + strings.Repeat("<", 32) + "-1-01"
		driver.Fault{Text: hostile, Class: hostile, Chain: hostile, Stack: hostile, Topic: "order.paid.v2", Handler: hostile, Host: hostile, Build: hostile, At: time.Now()}.Record(msg.Metadata)
		require.NoError(t, s.Transport().PoisonQueue(group).Put(t.Context(), driver.PoisonedMessage{Message: msg}))

		id := s.first(t)
		for _, page := range []string{
			"", "group?" + query("group", group), "group?" + query("group", group, "class", hostile, "key", hostile, "text", hostile, "type", hostile, "topic", hostile),
			"group?" + query("group", group, "correlation", hostile), "message?" + query("group", group, "id", id), "tail?" + query("pattern", "a.>"),
			"confirm?" + query("group", group, "id", id, "do", "drop", "text", hostile),
		} {
			requireHarmless(t, s.get(t, page).body)
		}
		for _, page := range []string{
			"group?" + query("group", hostile), "message?" + query("group", hostile, "id", hostile), "tail?" + query("pattern", hostile),
			"live?" + query("group", hostile), "group?" + query("group", group, "since", hostile), "confirm?" + query("group", group, "do", hostile), "edit?" + query("group", group, "id", id), url.PathEscape(hostile),
		} {
			a := send(t, http.MethodGet, s.url+page, nil)
			require.GreaterOrEqual(t, a.status, 400, page)
			requireHarmless(t, a.body)
		}

		msg = msg.Copy()
		msg.Payload = []byte(`</textarea><script>alert(1)</script>`)
		require.NoError(t, s.Transport().PoisonQueue(group).Put(t.Context(), driver.PoisonedMessage{ID: id, Message: msg}))
		requireHarmless(t, s.get(t, "edit?"+query("group", group, "id", id)).body)
	})
}

func requireHarmless(t *testing.T, body string) {
	t.Helper()
	for _, text := range []string{"<script>alert", "<img", `onerror=alert(2)>"`} {
		if i := strings.Index(body, text); i >= 0 { // the body is too long for a message
			require.Fail(t, "not escaped", "%q", body[max(0, i-200):i+20])
		}
	}
	// In attributes that go back to the server, a text stays as it is.
	body = regexp.MustCompile(`(?s)="[^"]*"`).ReplaceAllString(body, "")
	for _, text := range []string{"\u202e", "\x1b"} {
		if i := strings.Index(body, text); i >= 0 {
			require.Fail(t, "not escaped", "%q", body[max(0, i-200):i+20])
		}
	}
}

func TestConsole_worksUnderAPrefix(t *testing.T) {
	s := newShop(t, "memory://", true)
	s.poison(t, OrderPaid{Order: "o-1"})
	mux := http.NewServeMux()
	mux.Handle("/ops/leat/", http.StripPrefix("/ops/leat", console.New(console.Config{Bus: s.Bus, Stack: s.stack})))
	mux.Handle("/ops/leat", http.StripPrefix("/ops/leat", console.New(console.Config{Bus: s.Bus, Stack: s.stack})))
	server := httptest.NewServer(mux)
	defer server.Close()
	s.url = server.URL + "/ops/leat/"
	links := regexp.MustCompile(`(?:href|src|action|data-live|data-tail)="([^"]*)"`)
	for _, page := range []string{"", "group?" + query("group", group), "message?" + query("group", group, "id", s.first(t)), "tail", "outbox", "doctor", "wiring", "none"} {
		a := send(t, http.MethodGet, s.url+page, nil)
		found := links.FindAllStringSubmatch(a.body, -1)
		require.NotEmpty(t, found)
		for _, link := range found {
			require.NotRegexp(t, `^(/|\.\./|[a-z]+:)`, strings.TrimPrefix(link[1], "data:image/svg+xml"), page)
		}
	}
	bare := send(t, http.MethodGet, server.URL+"/ops/leat", nil) // which redirects
	require.Contains(t, bare.text, "Overview")
}

func TestReadOnly_refusesToChangeAnything(t *testing.T) {
	s := newShop(t, "memory://", false)
	s.poison(t, OrderPaid{Order: "o-1"})
	for _, page := range []string{"act", "edit", "publish", "confirm", "", "none"} {
		a := send(t, http.MethodPost, s.url+page, url.Values{"group": {group}, "do": {"drop"}, "id": {s.first(t)}, "count": {"1"}})
		require.Contains(t, []int{http.StatusForbidden, http.StatusNotFound}, a.status, page)
	}
	require.Equal(t, http.StatusForbidden, send(t, http.MethodPost, s.url+"act", nil).status)
	for _, page := range []string{"confirm?" + query("group", group, "do", "drop"), "edit?" + query("group", group, "id", s.first(t)), "publish"} {
		require.Equal(t, http.StatusForbidden, send(t, http.MethodGet, s.url+page, nil).status, page)
	}
	require.Equal(t, 1, s.poisoned(t))
	require.NotContains(t, s.get(t, "group?"+query("group", group)).body, "Drop…")
}

func TestConsole_refusesOtherSitesAndMachines(t *testing.T) {
	s := newShop(t, "memory://", true)
	s.poison(t, OrderPaid{Order: "o-1"})
	form := url.Values{"group": {group}, "do": {"drop"}, "count": {"1"}}
	for _, headers := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"},
	} {
		require.Equal(t, http.StatusForbidden, send(t, http.MethodPost, s.url+"act", form, headers...).status, headers)
	}
	require.Equal(t, http.StatusForbidden, send(t, http.MethodGet, s.url, nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors").status)
	link := send(t, http.MethodGet, s.url, nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
	require.Equal(t, http.StatusOK, link.status)
	require.Equal(t, 1, s.poisoned(t))

	handler := console.New(console.Config{Bus: s.Bus})
	for _, c := range []struct {
		host, peer string
		want       int
	}{
		{"127.0.0.1:1", "127.0.0.1:2", http.StatusOK},
		{"localhost", "[::1]:2", http.StatusOK},
		{"[::1]:80", "127.0.0.1:2", http.StatusOK},
		{"evil.example", "127.0.0.1:2", http.StatusForbidden},
		{"127.0.0.1", "192.0.2.1:2", http.StatusForbidden},
		{"127.0.0.1", "@", http.StatusForbidden},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Host, r.RemoteAddr = c.host, c.peer
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Equal(t, c.want, w.Code, c)
	}
}

func TestGroup_pagesAreBounded(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		msgs := make([]driver.PoisonedMessage, 120)
		for i := range msgs {
			msg := message.NewMessage(fmt.Sprint(i), []byte(`{}`))
			msg.Metadata[driver.HeaderID] = fmt.Sprintf("event-%03d", i)
			driver.Fault{Text: "x", Class: "c", Topic: "order.paid.v2", At: time.Now()}.Record(msg.Metadata)
			msgs[i].Message = msg
		}
		require.NoError(t, s.Transport().PoisonQueue(group).Put(t.Context(), msgs...))
		page, seen := "group?"+query("group", group), 0
		next := regexp.MustCompile(`href="(group\?[^"#]*after=[^"#]*)#messages">Next page`)
		for range 3 {
			a := s.get(t, page)
			n := strings.Count(a.body, `type="checkbox"`)
			require.LessOrEqual(t, n, 50)
			seen += n
			if found := next.FindStringSubmatch(a.body); found != nil {
				page = html.UnescapeString(found[1])
			}
		}
		require.Equal(t, 120, seen)
	})
}

func TestMessage_boundsItsPayload(t *testing.T) {
	s := newShop(t, "memory://", true)
	for name, payload := range map[string]string{
		"a long text": strings.Repeat("é", 1<<20), "deep": strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "binary": strings.Repeat("\x00\xff", 1<<20),
		"long JSON": `["` + strings.Repeat("x", 1<<20) + `"]`,
	} {
		msg := message.NewMessage("1", []byte(payload))
		driver.Fault{Text: "x", Class: "c", Topic: "order.paid.v2", At: time.Now()}.Record(msg.Metadata)
		require.NoError(t, s.Transport().PoisonQueue(group).Put(t.Context(), driver.PoisonedMessage{Message: msg}))
		id := s.first(t)
		a := s.get(t, "message?"+query("group", group, "id", id))
		require.Less(t, len(a.body), 600<<10, name)
		require.Contains(t, a.text, "This is only its beginning.", name)
		_, err := s.Transport().PoisonQueue(group).Drop(t.Context(), id)
		require.NoError(t, err)
	}
}
