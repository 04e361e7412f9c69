//go:build unix

package amqp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
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

// broker is a RabbitMQ node that tests may stop, kill and starve. It has its own data, ports and cookie, and
// keeps its data between one start and the next.
type broker struct {
	*brokerHost
	dir  string
	name string
	port string
	dist string // port of Erlang's distribution
	http string // of the management API; "" where the node has none
	env  []string
	node *exec.Cmd
}

// brokerHost holds what the nodes of one cluster share: a directory, a name server, and a watchdog.
type brokerHost struct {
	root    string
	account *syscall.Credential
	epmd    *exec.Cmd
	guard   *watchdog

	mu    sync.Mutex
	nodes []*broker
}

const brokerStarts = 3 * time.Minute

var privateBroker struct {
	sync.Mutex
	*broker
}

// ownBroker returns the package's own node when no other test uses it: the test may stop it, starve it, and change its settings.
func ownBroker(t *testing.T) *broker {
	t.Helper()
	return useOwnBroker(t, &turns.own)
}

// calmBroker returns the package's own node for a test that does not disturb others there.
func calmBroker(t *testing.T) *broker {
	t.Helper()
	return useOwnBroker(t, turns.own.RLocker())
}

// useOwnBroker starts the node at its first use; stopOwnBroker ends it.
func useOwnBroker(t *testing.T, turn sync.Locker) *broker {
	t.Helper()
	testenv.RabbitMQ(t) // skips where RabbitMQ is not wanted at all
	if testing.Short() {
		t.Skip("short: starting and stopping a broker takes its time")
	}
	await(t, turn)
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
	if b := privateBroker.broker; b != nil {
		b.end(syscall.SIGKILL)
		b.brokerHost.close()
	}
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

func newBroker(t testing.TB) *broker { return newBrokers(t, 1)[0] }

// newBrokers makes n nodes that form one cluster when they are started.
func newBrokers(t testing.TB, n int) []*broker {
	h := new(brokerHost)
	epmdPort := testenv.FreePort(t)
	root, err := os.MkdirTemp("", "leat-amqp-") //nolint:usetesting // another user must reach it
	require.NoError(t, err)
	h.root, h.guard = root, newWatchdog(t, root)
	if os.Geteuid() == 0 {
		account, err := user.Lookup("rabbitmq")
		if err != nil {
			t.Skip("root can't run RabbitMQ, and there is no account rabbitmq")
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		h.account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	h.own(t, root)
	for range n {
		b := &broker{brokerHost: h, port: testenv.FreePort(t), dist: testenv.FreePort(t)}
		b.name = "leat" + b.port + "@localhost"
		b.dir = filepath.Join(root, b.name)
		require.NoError(t, os.Mkdir(b.dir, 0o700))
		h.own(t, b.dir)
		h.nodes = append(h.nodes, b)
	}
	// The node tries again to move what is due to a queue that was away, after ten seconds, not after three minutes.
	config, args := "", "-kernel inet_dist_use_interface {127,0,0,1} -rabbit dead_letter_worker_publisher_confirm_timeout 10000"
	if n > 1 {
		if os.Getenv("LEAT_TEST_LONG") != "" {
			args += " -kernel net_ticktime 8" // a node that hangs is given up after so many seconds, not after a minute
		}
		config = "cluster_formation.peer_discovery_backend = classic_config\n"
		for i, b := range h.nodes {
			config += "cluster_formation.classic_config.nodes." + strconv.Itoa(i+1) + " = " + b.name + "\n"
		}
	}
	for _, b := range h.nodes {
		path := func(name string) string { return filepath.Join(b.dir, name) }
		plugins := "[]."
		if n == 1 {
			plugins, b.http = "[rabbitmq_management].", testenv.FreePort(t)
			config = "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = " + b.http + "\ncollect_statistics_interval = 100\n"
		}
		for name, text := range map[string]string{"rabbitmq.conf": config, "enabled_plugins": plugins} {
			require.NoError(t, os.WriteFile(path(name), []byte(text), 0o600))
			h.own(t, path(name))
		}
		b.env = []string{
			"HOME=" + root, "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/bin",
			"RABBITMQ_NODENAME=" + b.name,
			"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
			"RABBITMQ_NODE_PORT=" + b.port,
			"RABBITMQ_DIST_PORT=" + b.dist,
			"ERL_EPMD_PORT=" + epmdPort,
			"ERL_EPMD_ADDRESS=127.0.0.1",
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + args,
			"RABBITMQ_CONF_ENV_FILE=" + path("none.conf"),
			"RABBITMQ_CONFIG_FILE=" + path("rabbitmq.conf"),
			"RABBITMQ_CONFIG_FILES=" + path("none.d"),
			"RABBITMQ_ADVANCED_CONFIG_FILE=" + path("none-advanced"),
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + path("enabled_plugins"),
			"RABBITMQ_MNESIA_BASE=" + path("mnesia"),
			"RABBITMQ_LOG_BASE=" + path("log"),
			"RABBITMQ_LOGS=-",
			"RABBITMQ_PID_FILE=" + path("pid"),
		}
	}
	h.epmd = h.nodes[0].launch(t, "epmd", "-address", "127.0.0.1", "-port", epmdPort)
	h.watch(t)
	eventually(t, "the name server listens", func() bool { // else the node starts one of its own
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", epmdPort))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return h.nodes
}

// own gives a file or directory to the account that the nodes run as.
func (h *brokerHost) own(t testing.TB, path string) {
	if h.account != nil {
		require.NoError(t, os.Chown(path, int(h.account.Uid), int(h.account.Gid)))
	}
}

// watch tells the watchdog what to end when the tests end without a cleanup.
func (h *brokerHost) watch(t testing.TB) {
	h.mu.Lock()
	defer h.mu.Unlock()
	leaders := []*exec.Cmd{h.epmd}
	for _, b := range h.nodes {
		if b.node != nil {
			leaders = append(leaders, b.node)
		}
	}
	h.guard.watch(t, leaders...)
}

// close ends what the nodes shared. They must have ended.
func (h *brokerHost) close() {
	_ = syscall.Kill(-h.epmd.Process.Pid, syscall.SIGKILL)
	_ = h.epmd.Wait()
	_ = os.RemoveAll(h.root)
	h.guard.dismiss()
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
	b.begin(t)
	b.await(t)
}

// begin starts the node and does not wait for it.
func (b *broker) begin(t testing.TB) {
	t.Helper()
	node := b.launch(t, "rabbitmq-server")
	b.mu.Lock()
	b.node = node
	b.mu.Unlock()
	b.watch(t)
}

// await returns when the node accepts channels.
func (b *broker) await(t testing.TB) {
	t.Helper()
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
	b.eval(t, "[catch dets:sync(Table) || Table <- dets:all()].")
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

// together returns what each of some parallel subtests calls first, for a function that ends and starts the node again when
// all of them have called it, or have ended.
func (b *broker) together(subtests int, end func(testing.TB)) func(*testing.T) (restart func()) {
	var missing sync.WaitGroup
	missing.Add(subtests)
	var once sync.Once
	return func(t *testing.T) func() {
		ready := sync.OnceFunc(missing.Done)
		t.Cleanup(ready)
		return func() {
			ready()
			missing.Wait()
			once.Do(func() {
				end(t)
				b.start(t)
			})
		}
	}
}

// signal reaches the whole session: the start script and the Erlang node under it.
func (b *broker) signal(s syscall.Signal) { _ = syscall.Kill(-b.node.Process.Pid, s) }

// eval evaluates Erlang on the node, in milliseconds where rabbitmqctl takes a second of the processor.
func (b *broker) eval(t testing.TB, expressions string) string {
	t.Helper()
	cmd := b.command(t, "erl_call", "-h", strings.ReplaceAll(unique("call"), ".", ""), "-address", "localhost:"+b.dist, "-timeout", "60", "-e")
	cmd.Stdin = strings.NewReader(expressions + "\n")
	out, err := cmd.CombinedOutput()
	result, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "{ok, ")
	require.True(t, ok && err == nil, "eval %s: %v: %s", expressions, err, out)
	return strings.TrimSuffix(result, "}")
}

// setting sets a variable of the node until the returned function is called.
func (b *broker) setting(t testing.TB, name, value string) (reset func()) {
	t.Helper()
	before := b.eval(t, "{ok, Value} = application:get_env(rabbit, "+name+"), Value.")
	set := func(value string) {
		// RabbitMQ 4 reads some variables once, at its start.
		b.eval(t, "application:set_env(rabbit, "+name+", "+value+"), "+
			"persistent_term:get("+name+", none) =:= none orelse persistent_term:put("+name+", "+value+").")
	}
	set(value)
	return func() { set(before) }
}

// atLeast reports whether the broker has this version, or a later one.
func (b *broker) atLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	conn, err := rabbit.Dial(b.url())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	var x, y int
	_, err = fmt.Sscanf(fmt.Sprint(conn.Properties["version"]), "%d.%d", &x, &y)
	require.NoError(t, err)
	return x > major || x == major && y >= minor
}

// closeConnections closes all connections of clients.
func (b *broker) closeConnections(t testing.TB) {
	t.Helper()
	b.eval(t, `[catch rabbit_networking:close_connection(C, <<"testing">>) || C <- rabbit_networking:connections()].`)
}

// memoryAlarm has the node accept no messages until the returned function is called.
func (b *broker) memoryAlarm(t testing.TB) (end func()) {
	t.Helper()
	b.eval(t, "vm_memory_monitor:set_vm_memory_high_watermark(0.0001).")
	return sync.OnceFunc(func() { b.eval(t, "vm_memory_monitor:set_vm_memory_high_watermark(0.4).") })
}

// addUser makes a user with rights in a virtual host, until the test ends.
func (b *broker) addUser(t testing.TB, vhost, name, configure, write, read string) {
	t.Helper()
	b.call(t, http.MethodPut, "/api/users/"+name, `{"password":"secret","tags":""}`)
	t.Cleanup(func() { b.call(t, http.MethodDelete, "/api/users/"+name, "") })
	b.setRights(t, vhost, name, configure, write, read)
}

func (b *broker) setRights(t testing.TB, vhost, name, configure, write, read string) {
	t.Helper()
	rights, err := json.Marshal(map[string]string{"configure": configure, "write": write, "read": read})
	require.NoError(t, err)
	b.call(t, http.MethodPut, "/api/permissions/"+url.PathEscape(vhost)+"/"+name, string(rights))
}

func (b *broker) url() string        { return "amqp://guest:guest@" + b.addr() + "/" }
func (b *broker) management() string { return "http://127.0.0.1:" + b.http }
func (b *broker) addr() string       { return net.JoinHostPort("127.0.0.1", b.port) }
