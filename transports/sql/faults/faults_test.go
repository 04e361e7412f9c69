package faults_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// These variables make this program a service of a test, with a fault.
const (
	placeVariable = "LEAT_FAULTS_TEST_PLACE"
	faultVariable = "LEAT_FAULTS_TEST_FAULT"
)

// killsVariable is how often TestOutbox_survivesKilledServices kills services. awayVariable is how long TestOutbox_brokerIsUnreachable keeps the
// broker unreachable, and rateVariable the number of commits per second meanwhile.
const (
	killsVariable = "LEAT_TEST_KILLS"
	awayVariable  = "LEAT_TEST_AWAY"
	rateVariable  = "LEAT_TEST_RATE"
	traders       = 16
)

// start starts a service with a fault as a process, which prints lines.
func start(t *testing.T, p place, fault string) (*exec.Cmd, *bufio.Scanner) {
	text, err := json.Marshal(p)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=TestService$")
	cmd.Env = append(os.Environ(), placeVariable+"="+string(text), faultVariable+"="+fault)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

func await(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	for lines.Scan() {
		if lines.Text() == want {
			return
		}
	}
	t.Errorf("the service ended without %q", want)
}

func end(t *testing.T, cmd *exec.Cmd, lines *bufio.Scanner) {
	_ = cmd.Process.Kill()
	for lines.Scan() {
		if strings.Contains(lines.Text(), "DATA RACE") {
			t.Error(lines.Text())
		}
	}
	_ = cmd.Wait() // it was killed, or killed itself
}

func kill(how syscall.Signal) { _ = syscall.Kill(os.Getpid(), how) }

func TestService(t *testing.T) {
	text, ok := os.LookupEnv(placeVariable)
	if !ok {
		t.Skip("for the other tests")
	}
	var p place
	require.NoError(t, json.Unmarshal([]byte(text), &p))
	ctx := context.Background()
	switch os.Getenv(faultVariable) {
	case "is killed":
		s := newService(t, p, nil)
		s.run(t)
		fmt.Println("ready")
		s.trade(ctx, 4, 2*time.Millisecond)
	case "dies between commit and relay":
		s := newService(t, p, nil)
		s.orders(t, 40)
		kill(syscall.SIGKILL)
	case "dies after publish":
		s := newService(t, p, func(inner driver.Transport) driver.Transport {
			return around{inner, func(publish func() error) error {
				if err := publish(); err != nil {
					return err
				}
				kill(syscall.SIGKILL)
				return nil
			}}
		})
		s.run(t)
		s.trade(ctx, 4, time.Hour)
	case "hangs before publish":
		var once sync.Once
		s := newService(t, p, func(inner driver.Transport) driver.Transport {
			return around{inner, func(publish func() error) error {
				once.Do(func() {
					fmt.Println("hangs")
					kill(syscall.SIGSTOP)
					fmt.Println("goes on")
				})
				return publish()
			}}
		})
		s.run(t)
		select {} // an order that is being placed would lock its customer
	}
}

// around is a transport that calls a function around each publish.
type around struct {
	driver.Transport
	do func(publish func() error) error
}

func (a around) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	return a.do(func() error { return a.Transport.Publish(ctx, topic, msgs...) })
}

// TestOutbox_survivesKilledServices kills three services, which write, roll back and relay, at random points.
func TestOutbox_survivesKilledServices(t *testing.T) {
	rounds := 5 // of each of three services
	if n, err := strconv.Atoi(os.Getenv(killsVariable)); err == nil {
		rounds = (n + 2) / 3
	}
	p, c := newPlace(t)
	newService(t, p, nil).close(t) // creates the tables
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range rounds {
				cmd, lines := start(t, p, "is killed")
				await(t, lines, "ready")
				time.Sleep(50*time.Millisecond + rand.N(400*time.Millisecond)) // a random point
				end(t, cmd, lines)
			}
		})
	}
	wg.Wait()
	newService(t, p, nil).run(t)
	c.balance(t, p)
}

func TestOutbox_serviceDiesBetweenCommitAndRelay(t *testing.T) {
	p, c := newPlace(t)
	cmd, lines := start(t, p, "dies between commit and relay")
	for lines.Scan() {
	}
	end(t, cmd, lines)
	n, _ := c.count()
	require.Zero(t, n, "somebody relayed")
	newService(t, p, nil).run(t)
	c.balance(t, p)
	n, _ = c.count()
	require.Equal(t, 40, n)
}

func TestOutbox_relayDiesBetweenPublishAndAck(t *testing.T) {
	p, c := newPlace(t)
	s := newService(t, p, nil)
	s.orders(t, 40)
	cmd, lines := start(t, p, "dies after publish")
	for lines.Scan() {
	}
	end(t, cmd, lines)
	s.run(t)
	s.orders(t, 10)
	c.balance(t, p)
	require.Eventually(t, func() bool { _, twice := c.count(); return twice > 0 }, patience, 10*time.Millisecond,
		"what was published and not marked comes again")
}

func TestOutbox_relayHangsPastItsLease(t *testing.T) {
	p, c := newPlace(t)
	s := newService(t, p, nil)
	s.orders(t, 40)
	cmd, lines := start(t, p, "hangs before publish")
	defer func() { end(t, cmd, lines) }()
	await(t, lines, "hangs")
	s.run(t)
	s.orders(t, 10)
	c.balance(t, p) // another relay took over
	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	await(t, lines, "goes on")
	s.orders(t, 40)
	c.balance(t, p)
}

// TestOutbox_brokerIsUnreachable makes the broker unreachable while services commit.
func TestOutbox_brokerIsUnreachable(t *testing.T) {
	away, rate := 2*time.Second, 200
	if d, err := time.ParseDuration(os.Getenv(awayVariable)); err == nil {
		away = d
	}
	if n, err := strconv.Atoi(os.Getenv(rateVariable)); err == nil {
		rate = n
	}
	p, c := newPlace(t)
	u, err := url.Parse(p.Broker)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	s := newService(t, place{p.Postgres, u.String(), p.Schema}, nil)
	s.run(t)
	s.orders(t, 20)
	c.balance(t, p)

	proxy.Refuse()
	proxy.CutAll()
	s.orders(t, 20) // on a busy machine, the traders may not get as far
	trading, stop := context.WithTimeout(context.Background(), away)
	defer stop()
	s.trade(trading, traders, traders*time.Second*7/10/time.Duration(rate)) // 30 % roll back
	<-trading.Done()
	require.Eventually(t, func() bool { return s.outbox.Problem() != nil }, patience, 10*time.Millisecond)
	require.Equal(t, bus.Degraded, s.bus.Health()[0].State)
	stats, err := s.bus.OutboxStats(context.Background())
	require.NoError(t, err)
	t.Logf("%d wait, the first for %s", stats.Pending, stats.OldestAge)
	require.NotZero(t, stats.Pending)
	require.NotZero(t, stats.OldestAge)
	proxy.Accept()
	c.balance(t, p)
	require.Eventually(t, func() bool { return s.outbox.Problem() == nil }, patience, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		stats, err := s.bus.OutboxStats(context.Background())
		return err == nil && stats.Pending == 0
	}, patience, 10*time.Millisecond)
}
