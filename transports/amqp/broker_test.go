//go:build unix

package amqp_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// broker is a RabbitMQ node that tests may stop, kill and starve. It has its own data, ports, cookie
// and name server, and keeps its data between one start and the next.
type broker struct {
	dir     string
	port    string
	account *syscall.Credential
	env     []string
	epmd    *exec.Cmd
	node    *exec.Cmd
	guard   *watchdog
}

const brokerStarts = 3 * time.Minute

var privateBroker struct {
	sync.Mutex
	*broker
}

// ownBroker starts the package's own node at its first use; stopOwnBroker ends it.
func ownBroker(t testing.TB) *broker {
	t.Helper()
	testenv.RabbitMQ(t) // skips where RabbitMQ is not wanted at all
	if testing.Short() {
		t.Skip("short: starting and stopping a broker takes its time")
	}
	privateBroker.Lock()
	defer privateBroker.Unlock()
	if privateBroker.broker == nil {
		b := newBroker(t)
		b.start(t)
		privateBroker.broker = b
	}
	return privateBroker.broker
}

func stopOwnBroker() {
	privateBroker.Lock()
	defer privateBroker.Unlock()
	b := privateBroker.broker
	if b == nil {
		return
	}
	b.end(syscall.SIGKILL)
	_ = syscall.Kill(-b.epmd.Process.Pid, syscall.SIGKILL)
	_ = b.epmd.Wait()
	_ = os.RemoveAll(b.dir)
	b.guard.dismiss()
}

func program(t testing.TB, name string) string {
	for _, dir := range []string{"/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/rabbitmq/sbin"} {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s to start a broker of one's own with; install rabbitmq-server", name)
	}
	return path
}

func newBroker(t testing.TB) *broker {
	b := &broker{port: testenv.FreePort(t)}
	epmdPort := testenv.FreePort(t)
	dir, err := os.MkdirTemp("", "leat-amqp-") //nolint:usetesting // another user must reach it
	require.NoError(t, err)
	b.dir, b.guard = dir, newWatchdog(t, dir)
	if os.Geteuid() == 0 {
		account, err := user.Lookup("rabbitmq")
		if err != nil {
			t.Skip("root can't run RabbitMQ, and there is no account rabbitmq")
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		b.account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		require.NoError(t, os.Chown(dir, uid, gid))
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	b.env = []string{
		"HOME=" + dir, "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/bin",
		"RABBITMQ_NODENAME=leat" + b.port + "@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + b.port,
		"RABBITMQ_DIST_PORT=" + testenv.FreePort(t),
		"ERL_EPMD_PORT=" + epmdPort,
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_CONF_ENV_FILE=" + path("none.conf"),
		"RABBITMQ_CONFIG_FILE=" + path("none"),
		"RABBITMQ_CONFIG_FILES=" + path("none.d"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + path("none-advanced"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + path("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE=" + path("mnesia"),
		"RABBITMQ_LOG_BASE=" + path("log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + path("pid"),
	}
	b.epmd = b.launch(t, "epmd", "-address", "127.0.0.1", "-port", epmdPort)
	b.guard.watch(t, b.epmd)
	eventually(t, "the name server listens", func() bool { // else the node starts one of its own
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", epmdPort))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return b
}

func (b *broker) launch(t testing.TB, name string, args ...string) *exec.Cmd {
	cmd := b.command(t, name, args...)
	log, err := os.OpenFile(filepath.Join(b.dir, name+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	return cmd
}

func (b *broker) command(t testing.TB, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(t, name), args...)
	cmd.Dir, cmd.Env = b.dir, b.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: b.account}
	return cmd
}

// start returns when the node accepts channels.
func (b *broker) start(t testing.TB) {
	t.Helper()
	b.node = b.launch(t, "rabbitmq-server")
	b.guard.watch(t, b.epmd, b.node)
	ctx, cancel := context.WithTimeout(context.Background(), brokerStarts)
	defer cancel()
	for {
		conn, err := rabbit.Dial(b.url())
		if err == nil {
			_, err = conn.Channel()
			_ = conn.Close()
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the broker did not start: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends the node as an operator would.
func (b *broker) stop(testing.TB) { b.end(syscall.SIGTERM) }

// kill ends it as a power failure would, some time after its queues were made: RabbitMQ writes down
// which quorum queues it has every few minutes only, and a node killed before that can't recover
// the new ones.
func (b *broker) kill(t testing.TB) {
	b.ctl(t, "eval", "[dets:sync(Table) || Table <- dets:all()].")
	b.end(syscall.SIGKILL)
}

func (b *broker) end(signal syscall.Signal) {
	done := make(chan struct{})
	go func() {
		_ = b.node.Wait()
		close(done)
	}()
	b.signal(signal)
	select {
	case <-done:
	case <-time.After(patience): // a broker with much to do takes its time; killed, it forgets new queues
		b.signal(syscall.SIGKILL)
		<-done
	}
	b.signal(syscall.SIGKILL) // its port program, if it lives on
}

// signal reaches the whole session: the start script and the Erlang node under it.
func (b *broker) signal(s syscall.Signal) { _ = syscall.Kill(-b.node.Process.Pid, s) }

// ctl runs rabbitmqctl.
func (b *broker) ctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := b.command(t, "rabbitmqctl", append([]string{"-q"}, args...)...).CombinedOutput()
	require.NoError(t, err, "rabbitmqctl %s: %s", strings.Join(args, " "), out)
	return string(out)
}

func (b *broker) url() string  { return "amqp://guest:guest@" + b.addr() + "/" }
func (b *broker) addr() string { return net.JoinHostPort("127.0.0.1", b.port) }
