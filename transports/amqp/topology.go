package amqp

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// manyDeliveries is the x-delivery-limit of group and poison queues. RabbitMQ 4 drops a message
// after 20 deliveries by default; leat counts for itself. It is a number and not -1 (no limit),
// because the arguments of a queue can't change and must be valid on every version.
const manyDeliveries = int64(1 << 30)

// A topology has the names of objects on the broker, and declares those that are missing. It remembers what it has declared, so that
// deleted objects can be declared again.
type topology struct {
	cfg *Config

	mu        sync.Mutex
	exchanges map[string]bool // fanout exchanges of topology=watermill to which messages were published
	delays    bool            // something was published with a delay
	groups    map[string]driver.Subscription
	unstable  map[string]time.Time // until when groups are not declared over the publishing connection
}

func newTopology(cfg *Config) *topology {
	t := &topology{cfg: cfg, groups: make(map[string]driver.Subscription)}
	t.exchanges, t.unstable = make(map[string]bool), make(map[string]time.Time)
	return t
}

// forQueues returns the same names for another type of queues.
func (t *topology) forQueues(queueType QueueType) *topology {
	cfg := *t.cfg
	cfg.QueueType = queueType
	return &topology{cfg: &cfg}
}

func (t *topology) watermill() bool { return t.cfg.Topology == TopologyWatermill }

// address returns the exchange and the routing key for a topic's messages.
func (t *topology) address(topic string) (exchange, key string) {
	if t.watermill() {
		a := t.cfg.stock.of(topic)
		return a.exchange, a.key
	}
	return t.cfg.ExchangeName, topic
}

// delayKey returns the routing key with which a delayed message reaches its topic.
func (t *topology) delayKey(topic string) (string, error) {
	if t.watermill() {
		return t.cfg.stock.delayKey(topic)
	}
	return topic, nil
}

// queues returns the queues of a group: one, or with topology=watermill those of its topics.
func (t *topology) queues(s driver.Subscription) []string {
	if !t.watermill() {
		return []string{s.Group}
	}
	return t.cfg.stock.queuesOf(s)
}

func poisonName(group string) string      { return group + poisonSuffix }
func legacyQueueName(group string) string { return group + heldSuffix }
func leadName(group string) string        { return group + leadSuffix }

// own returns the queues of a group to which only leat publishes.
func (t *topology) own(s driver.Subscription) []string {
	names := []string{poisonName(s.Group)}
	if s.Order != driver.Unordered {
		names = append(append(names, keysName(s.Group)), parkedNames(s.Group)...)
	}
	for _, queue := range t.queues(s) {
		for _, delay := range t.retryDelays(s) {
			names = append(names, retryName(queue, delay))
		}
	}
	return names
}

// check returns an error if the subscription's names are too long for AMQP.
func (t *topology) check(s driver.Subscription) error {
	if t.watermill() && t.cfg.stock.queue == nil {
		return fmt.Errorf("the group's queue has no name: set Queue.GenerateName of the Watermill configuration, or give FromWatermill a function")
	}
	for _, name := range append(t.queues(s), t.own(s)...) {
		if err := checkName("queue", name); err != nil {
			return err
		}
		if strings.HasPrefix(name, "amq.") {
			return fmt.Errorf("queue %q: names that begin with amq. belong to the broker; choose another", name)
		}
	}
	return nil
}

// declareShared declares what publishers need.
func (t *topology) declareShared(ch *amqp.Channel) error {
	d := t.declarer(ch)
	t.declareExchange(d)
	return d.err
}

// allLevels returns the levels for delays that this process needs: those for redeliveries if it has a group, and those of
// publishers when it has published with a delay.
func (t *topology) allLevels() (all []levels) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.groups) > 0 {
		all = append(all, t.redelivering())
	}
	if t.delays {
		all = append(all, t.publishing())
	}
	return all
}

func (t *topology) delaysKnown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.delays
}

// publishDelayed declares the levels for publishers.
func (t *topology) publishDelayed(ctx context.Context, declare func(func(*amqp.Channel) error) error) error {
	err := declare(func(ch *amqp.Channel) error { return t.publishing().declare(ctx, t.declarer(ch)) })
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delays = true
	return nil
}

// declareDelays declares the levels for redeliveries, for the first group of this process.
func (t *topology) declareDelays(ctx context.Context, ch *amqp.Channel) error {
	t.mu.Lock()
	declared := len(t.groups) > 0
	t.mu.Unlock()
	if declared {
		return nil
	}
	return t.redelivering().declare(ctx, t.declarer(ch))
}

func (t *topology) declareExchange(d *declarer) {
	if !t.watermill() {
		d.exchange(t.cfg.ExchangeName, amqp.ExchangeTopic, nil)
	}
}

// repair declares again what is missing, before a new channel is used: a missing exchange may be the reason why the last channel
// was closed. Other objects are declared, and messages published, even if one can't be declared, which is logged. It returns an
// error if the connection is lost.
func (t *topology) repair(ctx context.Context, conn *amqp.Connection) error {
	p := prober{conn: conn}
	defer p.close()
	var lost error
	step := func(do func(*declarer)) {
		if lost != nil {
			return
		}
		err := p.do(func(ch *amqp.Channel) error {
			d := t.declarer(ch)
			do(d)
			return d.err
		})
		switch {
		case err == nil:
		case conn.IsClosed(), ctx.Err() != nil:
			lost = err
		default:
			t.cfg.Logger.Error("leat: amqp: not declared", "error", err)
		}
	}
	if !t.cfg.Operator {
		step(t.declareExchange)
	}
	topics, groups := t.remembered()
	for _, set := range t.allLevels() {
		step(func(d *declarer) {
			if err := set.declare(ctx, d); err != nil {
				d.err = err
			}
		})
	}
	for _, topic := range topics {
		step(func(d *declarer) { t.declareTopic(d, topic) })
	}
	for _, s := range groups {
		if t.isUnstable(s.Group) {
			continue // its own consumer declares it
		}
		step(func(d *declarer) { t.declareGroup(d, s) })
		if isCode(lost, amqp.InternalError) {
			t.setUnstable(s.Group)
		}
	}
	return lost
}

func (t *topology) isUnstable(group string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.unstable[group])
}

// setUnstable keeps a group for a while from being declared over the publishing connection, because the broker closes the
// connection for it.
func (t *topology) setUnstable(group string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unstable[group] = time.Now().Add(unstableFor)
}

// remembered returns what was declared so far, so that no lock is held while the broker is called.
func (t *topology) remembered() (topics []string, groups []driver.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.exchanges)), slices.Collect(maps.Values(t.groups))
}

// size returns how many groups this process has.
func (t *topology) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.groups)
}

// subscription returns the subscription of a group of this process.
func (t *topology) subscription(group string) (s driver.Subscription, here bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, here = t.groups[group]
	return s, here
}

func (t *topology) declarer(ch *amqp.Channel) *declarer {
	return &declarer{ch: ch, passive: t.cfg.Declare == DeclareNothing}
}

// declareTopic declares the exchange of a topic, which also gets messages that were published with a delay.
func (t *topology) declareTopic(d *declarer, topic string) {
	stock := t.cfg.stock
	exchange := stock.of(topic).exchange
	if exchange == "" {
		return // the default exchange
	}
	d.exchange(exchange, stock.exchangeKind, stock.exchangeArgs)
	if key, err := stock.delayKey(topic); err == nil { // else publishing with a delay fails
		delays := t.publishing().topics()
		d.exchange(delays, amqp.ExchangeDirect, nil)
		d.bindExchange(exchange, key, delays)
	}
}

// subscribe declares a group's queues and remembers them.
func (t *topology) subscribe(ch *amqp.Channel, s driver.Subscription) error {
	d := t.declarer(ch)
	t.declareGroup(d, s)
	if d.err != nil {
		return d.err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.groups[s.Group] = s
	return nil
}

func (t *topology) declareGroup(d *declarer, s driver.Subscription) {
	d.queue(poisonName(s.Group), t.plainArgs())
	if s.Order != driver.Unordered {
		for _, name := range append(parkedNames(s.Group), keysName(s.Group)) {
			d.queue(name, t.thrownOutTo(poisonName(s.Group)))
		}
	}
	for _, queue := range t.queues(s) {
		d.queue(queue, t.queueArgs(s))
	}
	t.declareRetries(d, s)
	t.bindGroup(d, s)
}

// bindGroup binds a group's queues to its topics.
func (t *topology) bindGroup(d *declarer, s driver.Subscription) {
	if t.watermill() {
		t.bindStock(d, s)
		return
	}
	for _, topic := range s.Topics {
		d.bind(s.Group, bindingKey(topic), t.cfg.ExchangeName, nil)
	}
}

// bindStock binds a group's queues as watermill-amqp does. The broker itself binds queues to the default exchange. Such a queue is
// bound to the exchange for delayed messages.
func (t *topology) bindStock(d *declarer, s driver.Subscription) {
	stock := t.cfg.stock
	for _, queue := range stock.bindings(s) {
		t.declareTopic(d, queue.topic)
		if a := stock.of(queue.topic); a.exchange != "" {
			d.bind(queue.name, stock.bindingKey(queue.name), a.exchange, stock.bindingArgs)
		} else if key, err := stock.delayKey(queue.topic); err == nil {
			delays := t.publishing().topics()
			d.exchange(delays, amqp.ExchangeDirect, nil)
			d.bind(queue.name, key, delays, nil)
		}
	}
}

// bindingKey translates a leat pattern to that of a topic exchange. # stands for zero or more words there, so > becomes *.#, one
// word or more.
func bindingKey(pattern string) string {
	if pattern == ">" {
		return "#" // topics have at least one word
	}
	if head, ok := strings.CutSuffix(pattern, ".>"); ok {
		return head + ".*.#"
	}
	return pattern
}

func (t *topology) queueArgs(s driver.Subscription) amqp.Table {
	if t.watermill() {
		return t.cfg.stock.queueArgs // as a plain Watermill service declares the queue
	}
	args := t.thrownOutTo(poisonName(s.Group))
	if s.Order != driver.Unordered {
		args["x-single-active-consumer"] = true
	}
	return args
}

// thrownOutTo returns the arguments of a queue whose messages are dead-lettered when a policy with a limit or a time to live
// removes them.
func (t *topology) thrownOutTo(queue string) amqp.Table {
	args := t.plainArgs()
	args["x-dead-letter-exchange"] = ""
	args["x-dead-letter-routing-key"] = queue
	return args
}

func (t *topology) plainArgs() amqp.Table { return plainArgs(t.cfg.QueueType) }

// publishTo declares a topic's exchange if topics have their own.
func (t *topology) publishTo(topic string, declare func(func(*amqp.Channel) error) error) error {
	if !t.watermill() {
		return nil
	}
	t.mu.Lock()
	known := t.exchanges[topic]
	t.mu.Unlock()
	if known {
		return nil
	}
	err := declare(func(ch *amqp.Channel) error {
		d := t.declarer(ch)
		t.declareTopic(d, topic)
		return d.err
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exchanges[topic] = true
	return nil
}

// adopt returns an error if a subscription differs from one of the same group in this process.
func (t *topology) adopt(s driver.Subscription) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.sharesNoQueue(s); err != nil {
		return err
	}
	other, ok := t.groups[s.Group]
	if !ok {
		return nil
	}
	return s.CheckAgrees(other.Topics, other.Order)
}

// sharesNoQueue returns an error if the group would have the queue of another group, because a Watermill configuration names queues
// by topic alone. It is called with mu locked.
func (t *topology) sharesNoQueue(s driver.Subscription) error {
	if !t.watermill() {
		return nil
	}
	queues := t.queues(s)
	for _, other := range t.groups {
		if other.Group == s.Group {
			continue
		}
		for _, queue := range t.queues(other) {
			if slices.Contains(queues, queue) {
				return fmt.Errorf("groups %q and %q would take each other's messages from queue %q; give FromWatermill a function that names the queues of each group",
					other.Group, s.Group, queue)
			}
		}
	}
	return nil
}
