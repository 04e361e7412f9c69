package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
)

// onEach runs a test against every message system, at once.
func onEach(t *testing.T, test func(t *testing.T, address string)) {
	for name, system := range systems() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, system(t)())
		})
	}
}

// leat starts the command as a process.
func leat(t *testing.T, address string, args ...string) *process {
	p := &process{Cmd: exec.CommandContext(patience(t), "leat", args...)}
	p.Env = append(os.Environ(), "LEAT_URL="+address, "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.err
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill() })
	return p
}

type process struct {
	*exec.Cmd
	out, err testenv.Buffer
}

func TestTail_showsCopies(t *testing.T) {
	onEach(t, func(t *testing.T, address string) {
		s := serve(t, t.Cleanup, address)
		p := leat(t, address, "tail", "--json", "order.paid.*")
		require.Eventually(t, func() bool { // it takes a while until copies come
			flawed := message.NewMessage("flawed", []byte(`{}`))
			flawed.Metadata = message.Metadata{driver.HeaderID: "flawed", driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop", "ce_tenant": "a\nb"}
			require.NoError(t, s.transport.Publish(patience(t), "order.paid.v1", flawed))
			s.publish(6)
			return strings.Contains(p.out.String(), `"type":"order.paid.v1"`) &&
				strings.Contains(p.err.String(), "skipped: bus: format CloudEvent: message flawed is no CloudEvent: attribute tenant")
		}, long, 20*time.Millisecond)
		require.NoError(t, p.Process.Signal(os.Interrupt))
		require.NoError(t, p.Wait(), "an interrupt is how a tail ends: %s", p.err.String())
	})
}

// poisonMany creates a group with n poisoned messages, and closes the instance.
func poisonMany(t *testing.T, address string, n int) (group string) {
	group = unique() + ".ledger"
	transport := open(t, address)
	t.Cleanup(func() { testenv.Forget(t, address, group) })
	defer func() { require.NoError(t, transport.Close(patience(t))) }()
	feed, err := transport.Subscribe(patience(t), subscription(group))
	require.NoError(t, err)
	msgs := make([]bus.PoisonedMessage, n)
	for i := range msgs {
		id := fmt.Sprintf("m-%05d", i)
		msg := message.NewMessage(id, []byte(`{}`))
		msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop"}
		driver.Fault{Text: "down", Class: "*net.OpError", Attempts: 8, Tries: 8, At: time.Now(), Group: group, Topic: "order.paid.v1"}.Set(msg.Metadata)
		msgs[i].Message = msg
	}
	require.NoError(t, transport.PoisonQueue(group).Put(patience(t), msgs...))
	require.NoError(t, feed.Close(patience(t)))
	return group
}

func subscription(group string) driver.Subscription {
	return driver.Subscription{Group: group, Topics: []string{"order.paid.v1"}, Known: []string{"order.paid.v1"}, Concurrency: 1}
}

func open(t *testing.T, address string) bus.Transport {
	transport, err := transports.Open(patience(t), address)
	require.NoError(t, err)
	return transport
}

// handled runs the group's service, with dedup, until it has handled all waiting messages. It returns how
// often it handled each message, and the number of duplicates.
func handled(t *testing.T, address, group string) (times map[string]int, duplicates int) {
	service, handler, _ := strings.Cut(group, ".")
	b, err := bus.New(open(t, address), bus.Config{
		Service: service, Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	last := make(chan struct{})
	times = make(map[string]int)
	require.NoError(t, b.Handle(handlers.Raw(handler, []string{"order.paid.v1"}, func(_ context.Context, msg *message.Message) error {
		if id := driver.MessageID(msg); id != "last" {
			times[id]++
		} else {
			close(last)
		}
		return nil
	}, handlers.Concurrency(1))))
	msg := message.NewMessage("last", []byte(`{}`))
	msg.Metadata = message.Metadata{driver.HeaderID: "last", driver.HeaderType: "order.paid.v1", driver.HeaderSource: "shop"}
	require.NoError(t, b.PublishMessages(patience(t), msg)) // behind all others
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	select {
	case <-last:
	case <-time.After(long):
		t.Error("the last message did not come")
	}
	require.NoError(t, b.Close(patience(t)))
	require.NoError(t, <-ended)
	return times, int(b.Stats().Groups[handler].Duplicates)
}

func poisoned(t *testing.T, address, group string) int {
	transport := open(t, address)
	defer func() { require.NoError(t, transport.Close(patience(t))) }()
	n, err := transport.PoisonQueue(group).Len(patience(t))
	require.NoError(t, err)
	return n
}

// settled returns the number of poisoned messages after a broker has returned those of a killed process, which may
// take some time.
func settled(t *testing.T, address, group string) (n int) {
	transport := open(t, address)
	defer func() { require.NoError(t, transport.Close(patience(t))) }()
	before := -1
	require.Eventually(t, func() bool {
		before = n
		var err error
		n, err = transport.PoisonQueue(group).Len(patience(t))
		return err == nil && n > 0 && n == before
	}, long, 500*time.Millisecond)
	return n
}

// begun waits until a process has moved some of n messages.
func begun(t *testing.T, address, group string, n int) {
	transport := open(t, address)
	defer func() { require.NoError(t, transport.Close(patience(t))) }()
	require.Eventually(t, func() bool {
		left, err := transport.PoisonQueue(group).Len(patience(t))
		return err == nil && left < n
	}, long, 10*time.Millisecond)
}

func TestReplay_interruptedReportsTheRest(t *testing.T) {
	onEach(t, func(t *testing.T, address string) {
		const n = 300
		group := poisonMany(t, address, n)
		p := leat(t, address, "poison", "replay", "--group", group, "--rate", "5")
		begun(t, address, group, n)
		require.NoError(t, p.Process.Signal(os.Interrupt))
		var failed *exec.ExitError
		require.ErrorAs(t, p.Wait(), &failed)
		require.Equal(t, 1, failed.ExitCode())
		require.Regexp(t, fmt.Sprintf(`leat: poison replay: .*replayed \d+ of %d messages, the others were not moved; run it again to continue`, n), p.err.String())
		left := poisoned(t, address, group)
		require.Positive(t, left)

		p = leat(t, address, "poison", "replay", "--group", group)
		require.NoError(t, p.Wait(), p.err.String())
		require.Contains(t, p.out.String(), fmt.Sprintf("replayed %d messages", left))
		times, duplicates := handled(t, address, group)
		require.Len(t, times, n)
		require.Zero(t, duplicates)
	})
}

// TestReplay_runsAgainAfterAKill kills a replay. No message may be lost, and the few that are in both queues
// are dropped by dedup. LEAT_TEST_DEAD is the number of messages.
func TestReplay_runsAgainAfterAKill(t *testing.T) {
	onEach(t, func(t *testing.T, address string) {
		const window = 1000
		n := 2000
		if many := os.Getenv("LEAT_TEST_DEAD"); many != "" {
			var err error
			n, err = strconv.Atoi(many)
			require.NoError(t, err)
		}
		group := poisonMany(t, address, n)
		const kills = 3
		left := n
		for range kills {
			p := leat(t, address, "poison", "replay", "--group", group, "--rate", strconv.Itoa(n/40))
			begun(t, address, group, left)
			require.NoError(t, p.Process.Signal(syscall.SIGKILL))
			_ = p.Wait()
			left = settled(t, address, group)
		}
		p := leat(t, address, "poison", "replay", "--group", group)
		require.NoError(t, p.Wait(), p.err.String())
		require.Zero(t, poisoned(t, address, group))
		times, duplicates := handled(t, address, group)
		require.Len(t, times, n, "none is lost")
		for id, k := range times {
			require.Equal(t, 1, k, id)
		}
		require.LessOrEqual(t, duplicates, kills*window)
	})
}

// TestDoctor_listsMissingRights runs leat doctor as a user with the right to read only.
func TestDoctor_listsMissingRights(t *testing.T) {
	address := onPostgres(t)
	group := poisonMany(t, address, 3)
	u, err := url.Parse(address)
	require.NoError(t, err)
	schema, role := u.Query().Get("schema"), unique()
	statement(t, address, "CREATE ROLE "+role+" LOGIN PASSWORD 's3cret'")
	t.Cleanup(func() { statement(t, address, "DROP OWNED BY "+role); statement(t, address, "DROP ROLE "+role) })
	statement(t, address, "GRANT USAGE ON SCHEMA "+schema+" TO "+role)
	statement(t, address, "GRANT SELECT ON ALL TABLES IN SCHEMA "+schema+" TO "+role)
	u.User = url.UserPassword(role, "s3cret")

	result := func(args ...string) (out, err string, status int) {
		p := leat(t, u.String(), args...)
		_ = p.Wait()
		require.NotContains(t, p.out.String()+p.err.String(), "s3cret")
		return p.out.String(), p.err.String(), p.ProcessState.ExitCode()
	}
	out, _, status := result("poison", "stats", "--group", group)
	require.Equal(t, 0, status, "who may read may look")
	require.Contains(t, out, "*net.OpError")
	_, text, status := result("poison", "rm", "--yes", "--group", group)
	require.Equal(t, 1, status)
	require.Contains(t, text, "permission denied for table leat_")
	require.Contains(t, text, "deleted 0 of 3 messages, the others were not moved")
	require.Contains(t, text, "run leat doctor to find the cause")
	out, _, status = result("doctor")
	require.Equal(t, 1, status)
	require.Contains(t, out, "WRONG  rights on leat_messages: ")
	require.Contains(t, out, "fix: GRANT INSERT, UPDATE, DELETE ON ")
	require.Equal(t, 3, poisoned(t, address, group))
}

// TestEdit_runsAgainAfterAKill kills an edit at a random point. The message must exist once, changed or unchanged, and the
// next edit must succeed.
func TestEdit_runsAgainAfterAKill(t *testing.T) {
	onEach(t, func(t *testing.T, address string) {
		group := poisonMany(t, address, 3)
		result := func(args ...string) string {
			p := leat(t, address, args...)
			require.NoError(t, p.Wait(), p.err.String())
			return p.out.String()
		}
		was := `{}`
		edited, took := 0, time.Duration(0)
		for edit := 1; edit <= 8; edit++ {
			will := fmt.Sprintf(`{"edit":%d}`, edit)
			began := time.Now()
			p := leat(t, address, "poison", "edit", "--group", group, "m-00001", "--data", will)
			if edit == 1 { // how long it takes
				require.NoError(t, p.Wait(), p.err.String())
				was, took = will, time.Since(began)
				continue
			}
			time.AfterFunc(took/2+rand.N(took), func() { _ = p.Process.Signal(syscall.SIGKILL) })
			_ = p.Wait()
			if p.out.String() != "" {
				edited++
				was = will
			}
			require.Equal(t, 3, strings.Count(result("poison", "ls", "--group", group), "m-0000"))
			payload := result("poison", "show", "--group", group, "--payload", "m-00001")
			require.Contains(t, []string{was, will}, payload)
			was = payload
		}
		t.Logf("%d of 7 edits came to their end", edited)
		require.Contains(t, result("poison", "edit", "--group", group, "--data", `{"edit":9}`, "--replay", "m-00001"), "changed and replayed ")
		require.Equal(t, 2, poisoned(t, address, group))
	})
}
