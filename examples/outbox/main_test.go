package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// programVariable makes this program the service.
const programVariable = "LEAT_TEST_EXAMPLE"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		testenv.OutliveInterrupt()
		main()
		return
	}
	os.Exit(m.Run())
}

// TestExample_survivesKills repeatedly kills the service while it takes orders. There must be one receipt for each order:
// no order without its event, and no event without its order.
func TestExample_survivesKills(t *testing.T) {
	name := fmt.Sprintf("leat_shop_%08x", rand.Uint32())
	database, broker := testenv.Postgres(t), testenv.RabbitMQ(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	admin, err := pgx.Connect(ctx, database)
	require.NoError(t, err)
	defer func() { _ = admin.Close(ctx) }()
	_, err = admin.Exec(ctx, "CREATE SCHEMA "+name)
	require.NoError(t, err)
	defer func() { _, _ = admin.Exec(ctx, "DROP SCHEMA "+name+" CASCADE") }()
	defer testenv.Forget(t, testenv.WithOption(t, broker, "exchange", name), name+".receipts")
	environment := append(os.Environ(), programVariable+"=1", "LISTEN=127.0.0.1:0", "LEAT_SERVICE="+name,
		"LEAT_URL="+testenv.WithOption(t, broker, "exchange", name), "DATABASE_URL="+testenv.WithOption(t, database, "search_path", name))

	var accepted atomic.Int64
	for range 4 {
		service, address := start(t, environment)
		var clients sync.WaitGroup
		begun := accepted.Load()
		clients.Go(func() { order(address, &accepted) })
		clients.Go(func() { order(address, &accepted) })
		require.Eventually(t, func() bool { return accepted.Load() >= begun+20+rand.Int64N(20) }, 5*time.Minute, time.Millisecond)
		require.NoError(t, service.Process.Kill())
		_ = service.Wait() // it was killed
		clients.Wait()
	}
	service, _ := start(t, environment)
	count := func(query string) (n int) {
		require.NoError(t, admin.QueryRow(ctx, strings.ReplaceAll(query, "shop.", name+".")).Scan(&n))
		return n
	}
	require.Eventually(t, func() bool {
		return count(`SELECT count(*) FROM shop.orders WHERE id NOT IN (SELECT order_id FROM shop.receipts)`) == 0
	}, 5*time.Minute, 20*time.Millisecond, "orders without their event")
	require.NoError(t, testenv.Interrupt(service), "it drains")
	require.Zero(t, count(`SELECT count(*) FROM shop.receipts WHERE order_id NOT IN (SELECT id FROM shop.orders)`), "events without their order")
	require.Equal(t, count(`SELECT count(*) FROM shop.orders`), count(`SELECT count(*) FROM shop.receipts`), "one receipt for each")
	require.GreaterOrEqual(t, count(`SELECT count(*) FROM shop.orders`), int(accepted.Load()), "what was answered is there")
}

func start(t *testing.T, environment []string) (*exec.Cmd, string) {
	service := exec.Command(os.Args[0])
	service.Env, service.Stderr = environment, os.Stderr
	out, err := service.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, service.Start())
	t.Cleanup(func() { _ = service.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if address, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
			return service, address
		}
	}
	t.Fatal("the service does not start")
	return nil, ""
}

// order places orders until the service has ended.
func order(address string, accepted *atomic.Int64) {
	for {
		answer, err := http.Post("http://"+address+"/orders", "application/json", strings.NewReader(`{"customer": "Ada", "cents": 1999}`)) //nolint:noctx // it ends with the service
		if err != nil {
			return
		}
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusCreated {
			accepted.Add(1)
		}
	}
}
