package sql_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// behindPgbouncer returns a system behind its own pooler, in transaction mode and with few connections.
func behindPgbouncer(t testing.TB) system {
	pgbouncer := sqltest.Program(t, "pgbouncer", "pgbouncer")
	s := onPostgres(t)
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	p, port := sqltest.NewPrivate(t, "postgres"), testenv.FreePort(t)
	host, serverPort, err := net.SplitHostPort(u.Host)
	require.NoError(t, err)
	config := filepath.Join(p.Dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
[databases]
* = host=%s port=%s user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
logfile = %s
`, host, serverPort, u.User.Username(), port, filepath.Join(p.Dir, "log")), 0o600))
	if c := p.As.Credential; c != nil {
		require.NoError(t, os.Chown(config, int(c.Uid), int(c.Gid)))
	}
	u.Host = net.JoinHostPort("127.0.0.1", port)
	p.Command, p.URL = []string{pgbouncer, config}, testenv.WithOption(t, u.String(), "default_query_exec_mode", "simple_protocol")
	p.Start(t)
	t.Cleanup(func() { p.Stop(t, syscall.SIGKILL) })
	s.URL = u.String()
	return s
}

// TestPgbouncer_transactionModeWorksWithTheOptionOfTheDocumentation checks every order, and the operators' methods.
func TestPgbouncer_transactionModeWorksWithTheOptionOfTheDocumentation(t *testing.T) {
	t.Parallel()
	s := behindPgbouncer(t)
	for _, mode := range []string{"exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			ctx := sqltest.Context(t)
			one, other := s.Start(t, "default_query_exec_mode", mode), s.Start(t, "default_query_exec_mode", mode)
			for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly} {
				sub := sqltest.Subscription(fmt.Sprintf("shop.%s%d", mode[:4], order), 4, "order.paid.v1")
				sub.Order = order
				l, stop := load(t, one, other, sub)
				l.waitAccepted(t, 100)
				stop()
				_, missing, twice := l.balance()
				require.Zero(t, missing)
				require.Zero(t, twice)
				feed, err := one.Subscribe(ctx, sqltest.Subscription(sub.Group+".poison", 1, "order.bad.v1"))
				require.NoError(t, err)
				require.NoError(t, other.Publish(ctx, "order.bad.v1", sqltest.NewMessage("order.bad.v1", "m")))
				require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Poison(ctx, driver.Fault{Text: "test"}))
				list, err := other.PoisonQueue(sub.Group+".poison").List(ctx, "", 10)
				require.NoError(t, err)
				n, err := other.PoisonQueue(sub.Group+".poison").Replay(ctx, list[0].ID)
				require.NoError(t, err)
				require.Equal(t, 1, n)
				require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
				require.NoError(t, feed.Close(ctx))
			}
		})
	}
}

// TestPgbouncer_withoutTheOption checks that the error has the fix.
func TestPgbouncer_withoutTheOption(t *testing.T) {
	t.Parallel()
	s := behindPgbouncer(t)
	const fix = "behind pgbouncer in transaction mode, set default_query_exec_mode=exec"
	var mu sync.Mutex
	var found error
	for range 20 {
		found = nil
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(sqltest.Context(t), 10*time.Second)
				defer cancel()
				err := func() error {
					transport, err := sqltest.OpenURL(ctx, s.URL)
					if err != nil {
						return err
					}
					defer func() { _ = transport.Close(ctx) }()
					_, err = transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
					return errors.Join(err, transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
				}()
				mu.Lock()
				defer mu.Unlock()
				found = errors.Join(found, err)
			})
		}
		if wg.Wait(); found != nil && strings.Contains(found.Error(), fix) {
			return
		}
	}
	require.NoError(t, found)
	t.Skip("this pgbouncer keeps prepared statements")
}
