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
// because the same arguments must do on every version: a queue can't change them.
const manyDeliveries = int64(1 << 30)

// topology knows the names on the broker, and declares what is missing. What was declared is
// remembered, so that it can be made again where it was deleted.
type topology struct {
	cfg *Config

	mu        sync.Mutex
	exchanges map[string]bool // fanout exchanges of topology=watermill that were published to
	delays    bool            // something was published with a delay
	groups    map[string]driver.Subscription
	sick      map[string]time.Time // until when groups are not declared by the way
}

func newTopology(cfg *Config) *topology {
	t := &topology{cfg: cfg, groups: make(map[string]driver.Subscription)}
	t.exchanges, t.sick = make(map[string]bool), make(map[string]time.Time)
	return t
}

// forQueues returns the same names for another type of queues.
func (t *topology) forQueues(queueType QueueType) *topology {
	cfg := *t.cfg
	cfg.QueueType = queueType
	return &topology{cfg: &cfg}
}

func (t *topology) watermill() bool { return t.cfg.Topology == TopologyWatermill }

// address is where a topic's messages are published.
func (t *topology) address(topic string) (exchange, key string) {
	if t.watermill() {
		return topic, ""
	}
	return t.cfg.ExchangeName, topic
}

// queues are the queues of a group: one, or with topology=watermill one for each topic.
func (t *topology) queues(s driver.Subscription) []string {
	if !t.watermill() {
		return []string{s.Group}
	}
	var names []string
	for _, topic := range s.Known {
		names = append(names, topic+"_"+s.Group)
	}
	return names
}

func poisonName(group string) string { return group + poisonSuffix }
func heldName(group string) string   { return group + heldSuffix }
func leadName(group string) string   { return group + leadSuffix }

// own are the queues of a group that only leat publishes to.
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

// check says whether the subscription's names fit on the wire.
func (t *topology) check(s driver.Subscription) error {
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

// declareShared makes what publishers need.
func (t *topology) declareShared(ch *amqp.Channel) error {
	d := t.declarer(ch)
	t.declareExchange(d)
	return d.err
}

// ways are the levels for delays that this process needs: those for redeliveries if it has a group, and those of
// publishers when it has published with a delay.
func (t *topology) ways() (all []levels) {
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

// publishDelayed makes the levels of publishers.
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

// declareDelays makes the levels for redeliveries, for the first group of this process.
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

// repair makes again what is missing, before a new channel is published over: a missing exchange may be why the last
// one was closed. What can't be made is logged, and keeps nothing else from being made, nor anybody from publishing.
// The error is that of a lost connection.
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
	for _, way := range t.ways() {
		step(func(d *declarer) {
			if err := way.declare(ctx, d); err != nil {
				d.err = err
			}
		})
	}
	for _, topic := range topics {
		step(func(d *declarer) { t.declareTopic(d, topic) })
	}
	for _, s := range groups {
		if t.isSick(s.Group) {
			continue // its own consumer makes it
		}
		step(func(d *declarer) { t.declareGroup(d, s) })
		if isCode(lost, amqp.InternalError) {
			t.setSick(s.Group)
		}
	}
	return lost
}

func (t *topology) isSick(group string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.sick[group])
}

// setSick keeps a group from being declared over the connection for publishing for a while: the broker ends the
// connection over it.
func (t *topology) setSick(group string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sick[group] = time.Now().Add(sickFor)
}

// remembered is what was declared so far. No lock is held while the broker is asked.
func (t *topology) remembered() (topics []string, groups []driver.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.exchanges)), slices.Collect(maps.Values(t.groups))
}

// subscription returns that of a group of this process.
func (t *topology) subscription(group string) (s driver.Subscription, here bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, here = t.groups[group]
	return s, here
}

func (t *topology) declarer(ch *amqp.Channel) *declarer {
	return &declarer{ch: ch, passive: t.cfg.Declare == DeclareNothing}
}

// declareTopic makes the fanout exchange of a topic, which gets what was published with a delay, too.
func (t *topology) declareTopic(d *declarer, topic string) {
	d.exchange(topic, amqp.ExchangeFanout, nil)
	delays := t.publishing().topics()
	d.exchange(delays, amqp.ExchangeDirect, nil)
	d.bindExchange(topic, topic, delays)
}

// subscribe makes a group's queues and remembers them.
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
		for i, topic := range s.Known {
			t.declareTopic(d, topic)
			d.bind(t.queues(s)[i], "", topic, nil)
		}
		return
	}
	for _, topic := range s.Topics {
		d.bind(s.Group, bindingKey(topic), t.cfg.ExchangeName, nil)
	}
}

// bindingKey is a leat pattern as the topic exchange's: # stands for any number of words there, and
// so > is * and # together, one word or more.
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
		return nil // a queue of the same name that a plain Watermill service declares has none
	}
	args := t.thrownOutTo(poisonName(s.Group))
	if s.Order != driver.Unordered {
		args["x-single-active-consumer"] = true
	}
	return args
}

// thrownOutTo are the arguments of a queue that loses nothing which the broker itself throws out, by a policy with a limit
// or a time to live.
func (t *topology) thrownOutTo(queue string) amqp.Table {
	args := t.plainArgs()
	args["x-dead-letter-exchange"] = ""
	args["x-dead-letter-routing-key"] = queue
	return args
}

func (t *topology) plainArgs() amqp.Table { return plainArgs(t.cfg.QueueType) }

// publishTo makes sure that a topic's exchange is there, where topics have their own.
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

// adopt refuses a subscription that disagrees with one of the same group in this process.
func (t *topology) adopt(s driver.Subscription) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	other, ok := t.groups[s.Group]
	if !ok || other.Order == s.Order && slices.Equal(other.Topics, s.Topics) {
		return nil
	}
	return fmt.Errorf("group %q is subscribed to %v (%s) already, and now to %v (%s); consumers of one group must agree, "+
		"so give one of them another name", s.Group, other.Topics, other.Order, s.Topics, s.Order)
}
