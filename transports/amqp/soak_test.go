//go:build unix

package amqp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/amqp"
)

// privateHeaders are those that leat writes for itself, and others that decide on something.
var privateHeaders = []string{
	"leat-attempt", "leat-crashes", "leat-topic", "leat-poison-id", "leat-poison-rev", "leat-pilot", "leat-queue", "leat-extra", "leat-version", "leat-own",
	"leat-user-id", "leat-deaths", "leat-delay-0", "leat-delay-9", "leat-delay-to", "leat-key", "leat-due", "leat-unreadable",
	"leat-head", "leat-seq", "leat-stamp", "leat-name", "leat-note", "leat-repeat",
	"leat-held-key", "leat-held-place", "leat-held-rev", "leat-held-until", "leat-held-note",
	"leat_instance", "leat_deliver_at", "leat_left_out", "leat_fault_error", "leat_fault_topic", "leat_fault_at", "leat_fault_failed_at", "leat_fault_failures",
	"leat_fault_stack", "leat_fault_waiting", "x-death", "x-delivery-count", "x-acquired-count", "x-first-death-queue", "amqp_user_id", "_watermill_message_uuid",
	"cloudEvents:id", "cloudEvents:type", "cloudEvents:source", "cloudEvents:time",
}

// hostileHeaders returns what a producer may write to mislead a consumer, by a name for each.
func hostileHeaders(victim string) map[string]rabbit.Table {
	all := map[string]rabbit.Table{
		"deep": deepTable(33), "wide": wideTable(8193), "bytes": {"\xff\xfe": "\xc3\x28", "cloudEvents:\xff": "\xff"}, "topic": {"leat-topic": strings.Repeat("t", 60_000)},
		"all topics": {"leat-topic": strings.Repeat("\xff", 60_000), "leat_fault_topic": strings.Repeat("t", 60_000)},
	}
	for _, n := range []int64{math.MinInt64, -1, math.MaxInt64} {
		counts := make(rabbit.Table)
		for _, name := range privateHeaders {
			counts[name] = n
		}
		delete(counts, "_watermill_message_uuid") // all of them would have one id, and be duplicates
		delete(counts, "cloudEvents:id")
		delete(counts, "leat-unreadable")
		counts["x-death"] = []any{rabbit.Table{"queue": victim, "count": n, "reason": "expired"}}
		all[fmt.Sprint("counts ", n)] = counts
	}
	for _, name := range privateHeaders {
		all["text in "+name] = rabbit.Table{name: victim}
		all["list in "+name] = rabbit.Table{name: []any{victim, int64(math.MinInt64)}}
		all["bytes in "+name] = rabbit.Table{name: "\xff\x1b[2J\n" + name}
		all["table in "+name] = rabbit.Table{name: rabbit.Table{"queue": victim, "count": int64(math.MinInt64)}}
	}
	for _, control := range []string{"tick", "fence", "marker", "drop", "block", "parked", "skip", "scan", "peace"} {
		all["control "+control] = rabbit.Table{"leat-note": control, "leat-held-note": control, "leat-head": "1-1", "leat-name": "281474976710655-1", "leat-seq": "281474976710655-1"}
	}
	for _, name := range []string{"CC", "BCC"} { // the broker routes by lists in these, and refuses anything else
		all["number in "+name] = rabbit.Table{name: int64(1)}
	}
	for size := 130_980; size <= 131_030; size++ {
		all[fmt.Sprint("filled ", size)] = rabbit.Table{"x": strings.Repeat("x", size)}
	}
	return all
}

// soakReport is what the process under attack says of itself.
type soakReport struct {
	Good       int // messages
	Again      int // of them that were handled again
	PeakKiB    int // of memory, as the system counts it; 0: unknown
	Reconnects int
}

// TestMainOfTheSoakedProcess serves until its standard input ends. The line "go" lets it work off large bodies; for the line
// "report" it writes a soakReport.
func TestMainOfTheSoakedProcess(t *testing.T) {
	raw := os.Getenv("LEAT_TEST_SOAK_URL")
	if raw == "" {
		t.Skip("this is the other process of TestSoak_hostileProducer")
	}
	transport, err := openURL(t.Context(), raw)
	require.NoError(t, err)
	b, err := bus.New(transport, bus.Config{Service: os.Getenv("LEAT_TEST_SOAK_SERVICE"), Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	var mu sync.Mutex
	var report soakReport
	good := make(map[string]bool)
	slow := make(chan struct{})
	handler := handlers.Raw("ledger", []string{os.Getenv("LEAT_TEST_SOAK_TOPICS")}, func(ctx context.Context, msg *message.Message) error {
		if len(msg.Payload) > 1<<20 {
			select {
			case <-slow:
			case <-ctx.Done():
			}
		}
		var event struct{ Good string }
		if err := json.Unmarshal(msg.Payload, &event); err != nil {
			return bus.Permanent(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if good[event.Good] {
			report.Again++
		}
		good[event.Good] = true
		return nil
	})
	if os.Getenv("LEAT_TEST_SOAK_ORDER") != "" {
		handler.Order = bus.OrderedByKey
	}
	require.NoError(t, b.Handle(handler))
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "go":
			close(slow)
		case "report":
			mu.Lock()
			report.Good, report.PeakKiB, report.Reconnects = len(good), peakKiB(), transport.(*amqp.Transport).Health().Reconnects
			text, err := json.Marshal(report)
			mu.Unlock()
			require.NoError(t, err)
			fmt.Printf("\nreport %s\n", text)
		}
	}
	stop()
	require.NoError(t, <-ran)
	require.NoError(t, b.Close(context.Background()))
}

// peakKiB returns the most memory that the process had, on Linux.
func peakKiB() (n int) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n
}

// soaked is the process under attack.
type soaked struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	reports chan soakReport
}

func soak(t *testing.T, raw, service, topics, order string) *soaked {
	t.Helper()
	p := &soaked{cmd: exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainOfTheSoakedProcess$"), reports: make(chan soakReport)}
	p.cmd.Env = append(os.Environ(), "LEAT_TEST_SOAK_URL="+patiently(raw), "LEAT_TEST_SOAK_SERVICE="+service, "LEAT_TEST_SOAK_TOPICS="+topics, "LEAT_TEST_SOAK_ORDER="+order,
		"GOMEMLIMIT=80MiB") // or the garbage collector lets the heap grow to twice of what is in use
	p.cmd.Stderr = os.Stderr
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.reports)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r soakReport
			if text, ok := strings.CutPrefix(lines.Text(), "report "); ok && json.Unmarshal([]byte(text), &r) == nil {
				p.reports <- r
			}
		}
	}()
	return p
}

func (p *soaked) tell(t *testing.T, line string) {
	t.Helper()
	_, err := fmt.Fprintln(p.in, line)
	require.NoError(t, err, "the process has ended")
}

func (p *soaked) report(t *testing.T) soakReport {
	t.Helper()
	p.tell(t, "report")
	r, ok := <-p.reports
	require.True(t, ok, "the process has ended")
	return r
}

func (p *soaked) end(t *testing.T) {
	t.Helper()
	require.NoError(t, p.in.Close())
	for range p.reports {
	}
	require.NoError(t, p.cmd.Wait())
}

// A producer who may write to the exchange and nowhere else sends all that is hostile, and then good messages. The good
// ones are handled, each of the others is in the poison queue with a reason, nothing is published anywhere else, and the
// consuming process keeps running and its memory stays bounded. LEAT_TEST_LONG=1 sends 200 bodies of 10 MB in place of 20.
func TestSoak_hostileProducer(t *testing.T) {
	b := ownBroker(t)
	producer := unique("producer")
	b.addUser(t, "/", producer, "^$", "^events$", "^$")
	for _, order := range []string{"", "by key"} {
		for _, queue := range []string{"quorum", "classic"} {
			t.Run(queue+" "+order, func(t *testing.T) { testSoak(t, b.url(), producer, queue, order) })
		}
	}
}

func testSoak(t *testing.T, broker, producer, queue, order string) {
	bodies := 20
	if os.Getenv("LEAT_TEST_LONG") != "" {
		bodies = 200
	}
	raw := withOptions(broker, "queue="+queue)
	u, err := url.Parse(bare(raw))
	require.NoError(t, err)
	u.User = url.UserPassword(producer, "secret")
	hostile := u.String()
	service, prefix := unique("shop"), unique("soak")
	group := service + ".ledger"
	transport := open(t, raw)
	p := soak(t, raw, service, prefix+".>", order)
	t.Cleanup(func() {
		_ = transport.Close(context.Background())
		_ = p.cmd.Process.Kill()
		cleanUp(t, raw, []string{group, group + ".poison", group + ".keys", group + ".parked.1a", group + ".parked.1b"})
	})
	eventually(t, "the group is there", func() bool { return consumersOf(t, raw, group) > 0 })

	bad := make(map[string]bool)
	withBroker(t, raw, func(ch *rabbit.Channel) {
		victim, watcher := unique("victim"), unique("watcher") // the watcher gets a copy of all that is published to the exchange
		for _, name := range []string{victim, watcher} {
			_, err := ch.QueueDeclare(name, false, true, true, false, rabbit.Table{"x-max-length-bytes": 1 << 20})
			require.NoError(t, err)
		}
		keyed := func(key string, headers rabbit.Table) rabbit.Table {
			if order != "" {
				headers = maps.Clone(headers)
				if headers == nil {
					headers = make(rabbit.Table)
				}
				headers["cloudEvents:partitionkey"] = key
			}
			return headers
		}
		send := func(own *rabbit.Channel, key, id string, headers rabbit.Table, body []byte) *rabbit.DeferredConfirmation {
			confirm, err := own.PublishWithDeferredConfirm("events", key, true, false, rabbit.Publishing{MessageId: id, Headers: headers, Body: body})
			require.NoError(t, err)
			return confirm
		}
		refused := 0
		bother := func(key, id string, headers rabbit.Table) {
			withBroker(t, hostile, func(own *rabbit.Channel) {
				require.NoError(t, own.Confirm(false))
				if confirm := send(own, key, id, headers, []byte("no json")); confirm.Wait() {
					bad[id] = true
				} else {
					refused++
				}
			})
		}
		for id, headers := range hostileHeaders(victim) {
			if !strings.HasPrefix(id, "filled") && id != "wide" { // there, one more would not fit
				headers = keyed(id, headers)
			}
			bother(prefix+".a", id, headers)
		}
		bother(prefix+".\xff\xfe\x1b[2J", "routing key", keyed("routing key", nil))
		bother(prefix+"."+strings.Repeat("k", 200), "long routing key", keyed("long routing key", nil))
		t.Logf("%d are sent, and the broker refuses %d more", len(bad), refused)
		withBroker(t, hostile, func(own *rabbit.Channel) {
			require.NoError(t, own.Confirm(false))
			large := make([]byte, 10_000_000)
			for i := range bodies {
				id := fmt.Sprint("body ", i)
				bad[id] = true
				require.True(t, send(own, prefix+".a", id, keyed(id, nil), large).Wait(), id)
			}
		})
		p.tell(t, "go")
		require.NoError(t, ch.QueueBind(watcher, "#", "events", false, nil))
		const n = 1000
		withBroker(t, hostile, func(own *rabbit.Channel) {
			require.NoError(t, own.Confirm(false))
			for i := range n {
				id := fmt.Sprint("good ", i)
				require.True(t, send(own, prefix+".a", id, keyed(fmt.Sprint("key ", i%20), nil), []byte(fmt.Sprintf(`{"Good":"%d"}`, i))).Wait(), id)
			}
		})
		reach(t, "the good ones are handled", n, func() int { return p.report(t).Good })
		reach(t, "the bad ones are poisoned", len(bad), func() int { return depth(t, raw, group+".poison") })
		q, err := ch.QueueDeclarePassive(victim, false, true, true, false, nil)
		require.NoError(t, err)
		require.Zero(t, q.Messages, "nothing goes where a producer wants it to")
		copies := 0
		for { // others use the exchange, too
			d, ok, err := ch.Get(watcher, true)
			require.NoError(t, err)
			if !ok {
				break
			}
			if strings.HasPrefix(d.RoutingKey, prefix) {
				copies++
			}
		}
		require.Equal(t, n, copies, "nothing else is published")
	})
	r := p.report(t)
	t.Logf("%s %s: %d bad ones, %+v", queue, order, len(bad), r)
	if !raceEnabled { // its memory is several times as much
		require.Less(t, r.PeakKiB, 128<<10)
	}
	require.Zero(t, r.Reconnects)
	require.Zero(t, r.Again)
	require.NoError(t, transport.PoisonQueue(group).(driver.PoisonWalker).Walk(t.Context(), func(p driver.PoisonedMessage) error {
		lost := strings.Contains(p.Fault.Text, "can't be read")
		var right bool
		switch id := p.Message.UUID; {
		case id == "deep", id == "wide", id == "text in leat-unreadable", id == "bytes in leat-unreadable":
			right = lost
		case strings.HasPrefix(id, "filled") && lost: // so large that the broker has no room for its own
			right = true
		default:
			right = strings.Contains(p.Fault.Text, "invalid character")
		}
		if !right {
			t.Errorf("%q: the reason is %q", p.Message.UUID, p.Fault.Text)
		}
		return nil
	}))
	p.end(t)
	closeAll(t, transport)
}

// reach waits until a count is n, as long as it grows.
func reach(t testing.TB, what string, n int, count func() int) {
	t.Helper()
	for had := count(); had != n; {
		before := had
		eventually(t, fmt.Sprintf("%s: more than %d of %d", what, before, n), func() bool {
			had = count()
			return had > before
		})
	}
}

// consumersOf returns how many consumers a queue has, 0 if it is not there.
func consumersOf(t testing.TB, raw, queue string) (n int) {
	t.Helper()
	withBroker(t, raw, func(ch *rabbit.Channel) {
		if q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil); err == nil {
			n = q.Consumers
		}
	})
	return n
}
