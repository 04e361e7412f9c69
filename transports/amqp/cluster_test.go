//go:build unix

package amqp_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/leatbus/leat/internal/testenv"
)

// cluster is three RabbitMQ nodes on loopback that tests may cut off from each other, stop and kill.
type cluster struct{ nodes []*broker }

const clusterSize = 3

var privateCluster struct {
	sync.Mutex
	*cluster
}

// ownCluster returns the package's own cluster when it is the test's turn. It starts the cluster at its first use; stopOwnCluster ends it.
func ownCluster(t *testing.T) *cluster {
	t.Helper()
	testenv.RabbitMQ(t) // skips where RabbitMQ is not wanted at all
	if testing.Short() {
		t.Skip("short: starting a cluster takes its time")
	}
	await(t, &turns.cluster)
	privateCluster.Lock()
	defer privateCluster.Unlock()
	if privateCluster.cluster == nil {
		c := &cluster{newBrokers(t, clusterSize)}
		for _, b := range c.nodes {
			b.begin(t)
		}
		for _, b := range c.nodes {
			b.await(t)
		}
		c.awaitWhole(t)
		privateCluster.cluster = c
	}
	return privateCluster.cluster
}

func stopOwnCluster() {
	privateCluster.Lock()
	defer privateCluster.Unlock()
	if privateCluster.cluster == nil {
		return
	}
	for _, b := range privateCluster.nodes {
		b.signal(syscall.SIGCONT)
		b.end(syscall.SIGKILL)
	}
	privateCluster.nodes[0].close()
}

// awaitWhole returns when every node is connected to all others.
func (c *cluster) awaitWhole(t testing.TB) {
	t.Helper()
	for _, b := range c.nodes {
		eventually(t, b.name+" is connected to all nodes", func() bool {
			return b.eval(t, "length(nodes()).") == strconv.Itoa(len(c.nodes)-1)
		})
	}
}

// follower returns a node that leads none of the queues, after it has made another one lead them.
func (c *cluster) follower(t testing.TB, queues ...string) *broker {
	t.Helper()
	at := c.nodes[2]
	for _, queue := range queues {
		eventually(t, "the leader of "+queue+" is elsewhere", func() bool {
			leader := c.leaderOf(t, queue)
			if leader != at.name && leader != "" {
				return true
			}
			at.eval(t, fmt.Sprintf(
				`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), {Name, _} = amqqueue:get_pid(Q), `+
					`ra:transfer_leadership({Name, '%s'}, {Name, '%s'}).`, queue, at.name, c.nodes[0].name))
			return false
		})
	}
	return at
}

// leaderOf returns the node that leads a quorum queue.
func (c *cluster) leaderOf(t testing.TB, queue string) string {
	t.Helper()
	leader := c.nodes[0].eval(t, fmt.Sprintf(
		`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), {Name, _} = amqqueue:get_pid(Q), `+
			`case ra:members({Name, node()}) of {ok, _, {_, Leader}} -> Leader; _ -> '' end.`, queue))
	return strings.Trim(leader, "'")
}

// cut ends the connections between a node and all others once. They connect again by themselves; what the
// cluster thinks of it is mended by rejoin.
func (c *cluster) cut(t testing.TB, at *broker) {
	t.Helper()
	at.eval(t, "[erlang:disconnect_node(N) || N <- nodes()].")
}

// rejoin restarts what runs on a node, as an operator does after a partition.
func (c *cluster) rejoin(t testing.TB, at *broker) {
	t.Helper()
	at.eval(t, "rabbit:stop().")
	at.eval(t, "rabbit:start().")
	c.awaitWhole(t)
}

// heal starts what does not run and waits until all nodes are connected.
func (c *cluster) heal(t testing.TB) {
	t.Helper()
	for _, b := range c.nodes {
		b.signal(syscall.SIGCONT)
		if b.node.ProcessState != nil {
			b.begin(t)
		}
	}
	for _, b := range c.nodes {
		b.await(t)
	}
	c.awaitWhole(t)
}
