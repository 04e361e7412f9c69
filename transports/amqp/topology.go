package amqp

import (
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// manyDeliveries is the x-delivery-limit of group and poison queues. RabbitMQ 4 drops a message
// after 20 deliveries by default; leat counts for itself. It is a number and not -1 (no limit),
// because the arguments of a queue can't change and must be valid on every version.
const manyDeliveries = int64(1 << 30)

// A topology has the names of objects on the broker, and the arguments and bindings with which they are declared. It does not
// change. What a process has declared is in [declaredTopology].
type topology struct{ cfg *Config }

// forQueues returns the same names for another type of queues.
func (t *topology) forQueues(queueType QueueType) *topology {
	cfg := *t.cfg
	cfg.QueueType = queueType
	return &topology{&cfg}
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

func (t *topology) declareExchange(d *declarer) {
	if !t.watermill() {
		d.exchange(t.cfg.ExchangeName, amqp.ExchangeTopic, nil)
	}
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
	if d.passive {
		return
	}
	if key, err := stock.delayKey(topic); err == nil { // else publishing with a delay fails
		delays := t.publishing().topics()
		d.exchange(delays, amqp.ExchangeDirect, nil)
		d.bindExchange(exchange, key, delays)
	}
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
		} else if key, err := stock.delayKey(queue.topic); err == nil && !d.passive {
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
