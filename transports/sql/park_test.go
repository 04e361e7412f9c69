package sql_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

const parkTopic = "order.paid.v1"

var errNotMended = errors.New("not mended yet")

func parking(concurrency int) driver.Subscription {
	sub := sqltest.Subscription("shop.ledger", concurrency, parkTopic)
	sub.Order, sub.Park = driver.OrderedByKey, true
	return sub
}

// publishKeyed publishes messages. The key is the part of the id before the slash.
func publishKeyed(t testing.TB, transport driver.Transport, ids ...string) {
	t.Helper()
	for _, id := range ids {
		msg := sqltest.NewMessage(parkTopic, id)
		msg.Metadata[driver.HeaderPartitionKey], _, _ = strings.Cut(id, "/")
		require.NoError(t, transport.Publish(sqltest.Context(t), parkTopic, msg))
	}
}

func poisonNext(t testing.TB, feed driver.Receiver, id string) {
	t.Helper()
	d := sqltest.Next(t, feed, sqltest.Patience)
	require.Equal(t, id, driver.MessageID(d.Message))
	require.NoError(t, d.Settler.Poison(sqltest.Context(t), driver.NewFault(d, errNotMended)))
}

func ackNext(t testing.TB, feed driver.Receiver, ids ...string) {
	t.Helper()
	for _, id := range ids {
		d := sqltest.Next(t, feed, sqltest.Patience)
		require.Equal(t, id, driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Ack())
	}
}

func deadLetters(t testing.TB, transport driver.Transport) []driver.PoisonedMessage {
	t.Helper()
	list, err := transport.PoisonQueue("shop.ledger").List(sqltest.Context(t), "", 10_000)
	require.NoError(t, err)
	return list
}

func replayAll(t testing.TB, transport driver.Transport, list []driver.PoisonedMessage) {
	t.Helper()
	ids := make([]string, len(list))
	for i, p := range list {
		ids[i] = p.ID
	}
	n, err := transport.PoisonQueue("shop.ledger").Replay(sqltest.Context(t), ids...)
	require.NoError(t, err)
	require.Equal(t, len(ids), n)
}

// TestPark_manyKeys checks that messages behind many poisoned ones are moved to the state parked, and delivered in order
// after a replay.
func TestPark_manyKeys(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		const keys, each = 70, 4
		transport := s.Start(t)
		feed, err := transport.Subscribe(sqltest.Context(t), parking(8))
		require.NoError(t, err)
		for k := range keys {
			publishKeyed(t, transport, fmt.Sprintf("%d/0", k))
		}
		for range keys {
			d := sqltest.Next(t, feed, sqltest.Patience)
			require.NoError(t, d.Settler.Poison(sqltest.Context(t), driver.NewFault(d, errNotMended)))
		}
		for i := 1; i < each; i++ {
			for k := range keys {
				publishKeyed(t, transport, fmt.Sprintf("%d/%d", k, i))
			}
		}
		waiting := make(chan *driver.Delivery, 1)
		go func() {
			d, err := feed.Next(sqltest.Context(t))
			if err != nil {
				t.Error(err)
			}
			waiting <- d
		}()
		db := s.DB(t)
		moved := "SELECT count(*) FROM " + s.Table("messages") + " WHERE state = 6"
		require.Eventually(t, func() bool { return sqltest.Count(t, db, moved) >= (keys-32)*(each-1) }, sqltest.Patience, 10*time.Millisecond, "nobody moves them")
		publishKeyed(t, transport, "free/0")
		d := <-waiting
		require.Equal(t, "free/0", driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Ack())

		operator := s.Start(t)
		dead := deadLetters(t, operator)
		require.Len(t, dead, keys)
		for _, p := range dead {
			require.Equal(t, each-1, p.Parked, driver.MessageID(p.Message))
		}
		parkedKeys := func() int {
			groups, err := operator.(driver.Inspector).Groups(sqltest.Context(t))
			require.NoError(t, err)
			require.Len(t, groups, 1)
			return groups[0].ParkedKeys
		}
		require.Equal(t, keys, parkedKeys())
		replayAll(t, operator, dead[1:])
		n, err := operator.PoisonQueue("shop.ledger").Drop(sqltest.Context(t), dead[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Zero(t, sqltest.Count(t, db, moved))
		require.Zero(t, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table("holds")))
		require.Zero(t, parkedKeys())
		got, want := map[string][]string{}, map[string][]string{}
		for k := range keys {
			for i := range each {
				if id := fmt.Sprintf("%d/%d", k, i); id != driver.MessageID(dead[0].Message) {
					want[fmt.Sprint(k)] = append(want[fmt.Sprint(k)], id)
				}
			}
		}
		for range keys*each - 1 {
			d := sqltest.Next(t, feed, sqltest.Patience)
			key := driver.PartitionKey(d.Message)
			got[key] = append(got[key], driver.MessageID(d.Message))
			require.NoError(t, d.Settler.Ack())
		}
		require.Equal(t, want, got)
	})
}

// TestPark_continuesUpToTheNextPoisonedMessage poisons two messages of a key, the later one first, because the earlier one
// was delayed.
func TestPark_continuesUpToTheNextPoisonedMessage(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		feed, err := transport.Subscribe(sqltest.Context(t), parking(2))
		require.NoError(t, err)
		late := sqltest.NewMessage(parkTopic, "a/1")
		late.Metadata[driver.HeaderPartitionKey] = "a"
		late.Metadata[driver.HeaderDeliverAt] = time.Now().Add(time.Hour).Format(time.RFC3339Nano)
		require.NoError(t, transport.Publish(sqltest.Context(t), parkTopic, late))
		publishKeyed(t, transport, "a/2", "a/3")
		poisonNext(t, feed, "a/2")
		sqltest.Run(t, s.DB(t), "UPDATE "+s.Table("messages")+" SET pos = 0 WHERE state = 1") // makes the message due
		poisonNext(t, feed, "a/1")
		dead := deadLetters(t, transport)
		require.Equal(t, []int{1, 0}, []int{dead[0].Parked, dead[1].Parked})
		replayAll(t, transport, dead[:1])
		require.Equal(t, 2, deadLetters(t, transport)[0].Parked, "a/2 waits behind a/1 again, and a/3 behind both")
		replayAll(t, transport, dead[1:])
		ackNext(t, feed, "a/1", "a/2", "a/3")
	})
}

// TestRetention_releasesParkedMessages checks that messages are released when the retention deletes the poisoned one.
func TestRetention_releasesParkedMessages(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t, "keep_poisoned", "1s")
		feed, err := transport.Subscribe(sqltest.Context(t), parking(2))
		require.NoError(t, err)
		publishKeyed(t, transport, "a/1", "a/2")
		poisonNext(t, feed, "a/1")
		ackNext(t, feed, "a/2")
		require.Zero(t, sqltest.Count(t, s.DB(t), "SELECT count(*) FROM "+s.Table("holds")))
	})
}

// TestPark_survivesAChangeOfOrder checks that a poisoned message holds back its key, or its group after a change to strict order.
func TestPark_survivesAChangeOfOrder(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		subscribe := func(order driver.Order) driver.Receiver {
			sub := parking(1)
			sub.Order = order
			feed, err := transport.Subscribe(sqltest.Context(t), sub)
			require.NoError(t, err)
			return feed
		}
		stopped := func(feed driver.Receiver) {
			t.Helper()
			ctx, cancel := context.WithTimeout(sqltest.Context(t), 100*time.Millisecond)
			defer cancel()
			_, err := feed.Next(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NoError(t, feed.Close(sqltest.Context(t)))
		}
		feed := subscribe(driver.OrderedByKey)
		publishKeyed(t, transport, "a/1", "a/2", "b/1")
		for id := ""; id != "a/1"; {
			d := sqltest.Next(t, feed, sqltest.Patience)
			if id = driver.MessageID(d.Message); id == "a/1" {
				require.NoError(t, d.Settler.Poison(sqltest.Context(t), driver.NewFault(d, errNotMended)))
			} else {
				require.NoError(t, d.Settler.Ack())
				publishKeyed(t, transport, "b/1")
			}
		}
		require.NoError(t, feed.Close(sqltest.Context(t)))

		stopped(subscribe(driver.OrderedStrictly))
		require.Equal(t, 2, deadLetters(t, transport)[0].Parked)

		feed = subscribe(driver.OrderedByKey)
		ackNext(t, feed, "b/1")
		require.Equal(t, 1, deadLetters(t, transport)[0].Parked)
		stopped(feed)

		feed = subscribe(driver.OrderedStrictly)
		replayAll(t, transport, deadLetters(t, transport))
		ackNext(t, feed, "a/1", "a/2")
	})
}

// parkerVariable makes this program a consumer that poisons messages with "bad" in the id until a file "mended" exists, and
// writes the ids of handled messages into a file "handled" that all consumers share.
const parkerVariable = "LEAT_SQL_TEST_PARKER"

// TestPark_threeProcessesKeepTheOrder checks that three processes of one group handle a replayed message, and the
// messages behind it, in the order of publishing.
func TestPark_threeProcessesKeepTheOrder(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, dir := s.Start(t), t.TempDir()
		feed, err := transport.Subscribe(sqltest.Context(t), parking(1)) // creates the group; this receiver claims nothing
		require.NoError(t, err)
		require.NoError(t, feed.Close(sqltest.Context(t)))
		for range 3 {
			startParker(t, s.URL, dir)
		}
		const keys, each = 20, 15
		want := map[string][]string{}
		publish := func(k int, id string) {
			publishKeyed(t, transport, id)
			want[fmt.Sprint(k)] = append(want[fmt.Sprint(k)], id)
		}
		for i := range each {
			for k := range keys {
				id := fmt.Sprintf("%d/%02d", k, i)
				if k < 2 && (i == 3 || i == 7) {
					id += "bad"
				}
				publish(k, id)
			}
		}
		handled := func() map[string][]string {
			all := map[string][]string{}
			lines, err := os.ReadFile(filepath.Join(dir, "handled"))
			require.NoError(t, err)
			for line := range bytes.Lines(lines) {
				id := strings.TrimSpace(string(line))
				key, _, _ := strings.Cut(id, "/")
				all[key] = append(all[key], id)
			}
			return all
		}
		wait := func(what string, n int) {
			t.Helper()
			require.Eventually(t, func() bool {
				got := 0
				for _, ids := range handled() {
					got += len(ids)
				}
				return got == n
			}, sqltest.Patience, 10*time.Millisecond, what)
		}
		parked := func() (n int) {
			for _, p := range deadLetters(t, transport) {
				n += p.Parked
			}
			return n
		}
		wait("the others are handled", keys*each-2*(each-3))
		require.Eventually(t, func() bool { return len(deadLetters(t, transport)) == 2 }, sqltest.Patience, 10*time.Millisecond)
		require.Equal(t, 2*(each-4), parked())
		require.Equal(t, want["0"][:3], handled()["0"])

		require.NoError(t, os.WriteFile(filepath.Join(dir, "mended"), nil, 0o600))
		replayAll(t, transport, deadLetters(t, transport))
		for i := range 5 {
			for k := range 2 {
				publish(k, fmt.Sprintf("%d/new%d", k, i))
			}
		}
		wait("the parked are handled", keys*each+2*5)
		require.Equal(t, want, handled())
	})
}

// startParker returns when the process has subscribed. It ends with its standard input.
func startParker(t *testing.T, raw, dir string) {
	worker := exec.Command(os.Args[0], "-test.run=TestParker$")
	worker.Env = append(os.Environ(), parkerVariable+"="+raw+" "+dir)
	in, err := worker.StdinPipe()
	require.NoError(t, err)
	out, err := worker.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, worker.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		require.NoError(t, worker.Wait())
	})
	ready := make([]byte, len("ready"))
	_, err = io.ReadFull(out, ready)
	require.NoError(t, err)
}

func TestParker(t *testing.T) {
	raw, dir, ok := strings.Cut(os.Getenv(parkerVariable), " ")
	if !ok {
		t.Skip("for TestPark_threeProcessesKeepTheOrder")
	}
	ctx := t.Context()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	transport, err := sql.Open(ctx, u)
	require.NoError(t, err)
	feed, err := transport.Subscribe(ctx, parking(4))
	require.NoError(t, err)
	handled, err := os.OpenFile(filepath.Join(dir, "handled"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	for range 4 {
		go func() {
			for {
				d, err := feed.Next(ctx)
				if err != nil {
					return
				}
				id := driver.MessageID(d.Message)
				_, err = os.Stat(filepath.Join(dir, "mended"))
				if strings.HasSuffix(id, "bad") && err != nil {
					err = d.Settler.Poison(ctx, driver.NewFault(d, errNotMended))
				} else if _, err = handled.WriteString(id + "\n"); err == nil {
					err = d.Settler.Ack()
				}
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	fmt.Print("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it ends
	sqltest.CloseNow(t, transport)
}
