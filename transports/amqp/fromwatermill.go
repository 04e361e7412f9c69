package amqp

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// FromWatermill returns a Config for a service's configuration for watermill-amqp, so that it shares exchanges, queues and
// messages with services that still run plain Watermill. It takes over the connection (address, credentials, TLS, virtual
// host, heartbeat), the names of exchanges and queues, their arguments, the routing keys, the marshaler, and a prefetch
// count above 1. Handlers' concurrency replaces a prefetch count of 1, publishing is always confirmed and persistent, and
// leat's own backoff reconnects.
//
// queueName names the queue in which a group gets a topic's messages. If it is nil, c.Queue.GenerateName names it, and a
// service can have one group for each of these queues.
//
// A Watermill topology has no patterns, no order and no parking: handlers that ask for them fail at start. Queues and
// exchanges that are not durable, are deleted automatically or are exclusive would lose messages, and a custom
// TopologyBuilder can't be followed: FromWatermill returns an error that names the field.
func FromWatermill(c stock.Config, queueName func(topic, group string) string) (Config, error) {
	cfg, err := connectionOf(c.Connection)
	if err == nil {
		cfg.stock, err = newStockNames(c, queueName)
	}
	if err != nil {
		return Config{}, fmt.Errorf("amqp: from Watermill: %w", err)
	}
	cfg.Topology = TopologyWatermill
	if n := c.Consume.Qos.PrefetchCount; n > 1 {
		cfg.PrefetchCount = n
	}
	return cfg, nil
}

// durableNames returns the names of watermill-amqp's durable Pub/Sub, the default for TopologyWatermill.
func durableNames() *stockNames {
	names, err := newStockNames(stock.NewDurablePubSubConfig("", nil), func(topic, group string) string {
		return stock.GenerateQueueNameTopicNameWithSuffix(group)(topic)
	})
	if err != nil {
		panic(err) // watermill-amqp's own configuration
	}
	return names
}

// connectionOf returns the address and credentials. Its errors have no cause, which could contain the password.
func connectionOf(c stock.ConnectionConfig) (Config, error) {
	uri, err := amqp.ParseURI(c.AmqpURI)
	if err != nil {
		return Config{}, errors.New("Connection.AmqpURI is not an AMQP URI such as amqp://user:password@host:5672/vhost")
	}
	cfg := Config{
		Host: net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), Vhost: uri.Vhost, Username: uri.Username, Password: uri.Password,
		TLSConfig: c.TLSConfig, UseTLS: uri.Scheme == SchemeTLS, CACert: uri.CACertFile, Cert: uri.CertFile, Key: uri.KeyFile,
		ServerName: uri.ServerName,
	}
	if u, err := url.Parse(c.AmqpURI); err == nil {
		seconds, _ := strconv.Atoi(u.Query().Get("heartbeat")) // checked by ParseURI
		cfg.Heartbeat = time.Duration(seconds) * time.Second
	}
	for _, mechanism := range uri.AuthMechanism {
		if strings.EqualFold(mechanism, "external") {
			cfg.Auth = External
		}
	}
	if a := c.AmqpConfig; a != nil {
		cfg.Vhost = cmp.Or(a.Vhost, cfg.Vhost)
		cfg.Heartbeat = cmp.Or(a.Heartbeat, cfg.Heartbeat)
		if cfg.TLSConfig == nil {
			cfg.TLSConfig = a.TLSClientConfig
		}
		cfg.ConnectionName, _ = a.Properties["connection_name"].(string)
		for _, auth := range a.SASL {
			switch auth := auth.(type) {
			case *amqp.PlainAuth:
				cfg.Username, cfg.Password = auth.Username, auth.Password
			case *amqp.ExternalAuth:
				cfg.Auth = External
			default:
				return Config{}, fmt.Errorf("Connection.AmqpConfig.SASL has %s, which is not supported; use PLAIN or EXTERNAL", auth.Mechanism())
			}
		}
	}
	return cfg, nil
}

// stockNames are the names on the broker of a configuration for watermill-amqp, and its marshaler. Its methods may be
// called concurrently.
type stockNames struct {
	exchange     func(topic string) string
	exchangeKind string
	exchangeArgs amqp.Table
	queue        func(topic, group string) string
	queueArgs    amqp.Table
	bindingKey   func(queue string) string // watermill-amqp passes the queue's name
	bindingArgs  amqp.Table
	routingKey   func(topic string) string

	uuidHeader string
	process    func(amqp.Publishing) amqp.Publishing // of the default marshaler; may be nil
	marshaler  stock.Marshaler                       // nil for the default one

	mu      sync.RWMutex
	topics  map[address]string // of what was published or subscribed to
	delayed map[string]address // by the routing key at the end of a delay
}

// An address is the exchange and routing key of a topic's messages.
type address struct{ exchange, key string }

func newStockNames(c stock.Config, queueName func(topic, group string) string) (*stockNames, error) {
	switch {
	case c.Exchange.GenerateName == nil:
		return nil, errors.New("Exchange.GenerateName is nil")
	case c.Publish.GenerateRoutingKey == nil:
		return nil, errors.New("Publish.GenerateRoutingKey is nil")
	case c.Marshaler == nil:
		return nil, errors.New("the field Marshaler is nil; DefaultMarshaler is the usual one")
	case !c.Queue.Durable:
		return nil, errors.New("Queue.Durable is false: a restart of the broker would lose messages; create other queues with NewDurablePubSubConfig or NewDurableQueueConfig")
	case c.Queue.AutoDelete:
		return nil, errors.New("Queue.AutoDelete is true: the messages of a service that stops would be lost")
	case c.Queue.Exclusive, c.Consume.Exclusive:
		return nil, errors.New("Queue.Exclusive or Consume.Exclusive is true: a group has several consumers")
	case c.Consume.NoRequeueOnNack:
		return nil, errors.New("Consume.NoRequeueOnNack is true: leat has a poison queue for messages that fail; leave it out")
	}
	if _, usual := c.TopologyBuilder.(*stock.DefaultTopologyBuilder); !usual && c.TopologyBuilder != nil {
		return nil, fmt.Errorf("TopologyBuilder is %T: leat declares what the DefaultTopologyBuilder does; "+
			"leave it out, declare the rest yourself, and set Declare to DeclareNothing", c.TopologyBuilder)
	}
	n := &stockNames{
		exchange: c.Exchange.GenerateName, exchangeKind: c.Exchange.Type, exchangeArgs: c.Exchange.Arguments,
		queue: queueName, queueArgs: c.Queue.Arguments, bindingKey: c.QueueBind.GenerateRoutingKey, bindingArgs: c.QueueBind.Arguments,
		routingKey: c.Publish.GenerateRoutingKey, uuidHeader: headerWatermillUUID,
		topics: make(map[address]string), delayed: make(map[string]address),
	}
	if queueName == nil && c.Queue.GenerateName != nil {
		n.queue = func(topic, _ string) string { return c.Queue.GenerateName(topic) }
	}
	if n.bindingKey == nil {
		n.bindingKey = func(string) string { return "" }
	}
	if usual, ok := c.Marshaler.(stock.DefaultMarshaler); ok {
		n.uuidHeader, n.process = cmp.Or(usual.MessageUUIDHeaderKey, headerWatermillUUID), usual.PostprocessPublishing
	} else {
		n.marshaler = c.Marshaler
	}
	if n.exchange(anyTopic) != "" && (!c.Exchange.Durable || c.Exchange.AutoDeleted || c.Exchange.Internal) {
		return nil, errors.New("the Exchange is not durable, is deleted automatically, or is internal: messages would be lost; use NewDurablePubSubConfig's")
	}
	return n, nil
}

// anyTopic is a topic with which the functions for names are tested.
const anyTopic = "order.placed.v1"

// limits describes what the topology does not support.
func (n *stockNames) limits() string {
	text := "no patterns, no order, no parking; of several crashes of a message the broker counts one"
	if n.exchange(anyTopic) == "" {
		text += "; messages are published to the default exchange, so every producer can set leat's own headers"
	}
	return text
}

// of returns where a topic's messages are published, and remembers it for [stockNames.topicOf].
func (n *stockNames) of(topic string) address {
	p := address{n.exchange(topic), n.routingKey(topic)}
	n.mu.RLock()
	_, known := n.topics[p]
	n.mu.RUnlock()
	if !known {
		n.mu.Lock()
		n.topics[p] = topic // the first topic of an address; others of the same address can't be distinguished
		n.mu.Unlock()
	}
	return p
}

// delayKey returns the routing key of a topic's delayed messages. At the end of the delay an exchange routes by it to the topic's
// exchange, which gets the same key: a fanout exchange ignores it, any other needs the topic's routing key.
func (n *stockNames) delayKey(topic string) (string, error) {
	p := n.of(topic)
	key := p.key
	if p.exchange != "" && n.exchangeKind == amqp.ExchangeFanout {
		key = topic
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if other, taken := n.delayed[key]; taken && other != p {
		return "", fmt.Errorf("routing key %q is used for the exchanges %q and %q, which a delay can't distinguish; "+
			"publish without a delay, or use a different routing key for each topic", key, other.exchange, p.exchange)
	}
	n.delayed[key] = p
	return key, nil
}

// topicOf returns the topic of a message that was published to this address, "" if it is not known.
func (n *stockNames) topicOf(exchange, key string) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	p := address{exchange, key}
	if strings.HasPrefix(exchange, delayPrefix) {
		p = n.delayed[key]
	}
	if topic, known := n.topics[p]; known {
		return topic
	}
	if n.exchangeKind == amqp.ExchangeFanout && n.exchange(exchange) == exchange {
		return exchange // each topic has its own exchange
	}
	return ""
}

// queuesOf returns the queues of a group, each once.
func (n *stockNames) queuesOf(s driver.Subscription) (names []string) {
	for _, queue := range n.bindings(s) {
		if queue.first {
			names = append(names, queue.name)
		}
	}
	return names
}

// stockQueue is the queue in which a group gets the messages of a topic.
type stockQueue struct {
	name, topic string
	first       bool // no topic before it has the queue
}

func (n *stockNames) bindings(s driver.Subscription) []stockQueue {
	seen := make(map[string]bool)
	all := make([]stockQueue, 0, len(s.Known))
	for _, topic := range s.Known {
		name := n.queue(topic, s.Group)
		all = append(all, stockQueue{name, topic, !seen[name]})
		seen[name] = true
	}
	return all
}

// marshal encodes a message as the service's marshaler does.
func (n *stockNames) marshal(msg *message.Message, topic string, cfg *Config) (amqp.Publishing, error) {
	kept := make(amqp.Table) // records of failures are not passed to the marshaler
	for name, value := range msg.Metadata {
		if strings.HasPrefix(name, faultPrefix) || name == headerLeftOut {
			kept[name] = value
		}
	}
	if len(kept) > 0 {
		bare := message.NewMessage(msg.UUID, msg.Payload)
		bare.Metadata = maps.Clone(msg.Metadata)
		maps.DeleteFunc(bare.Metadata, func(name, _ string) bool { return kept[name] != nil })
		msg = bare
	}
	p, err := n.marshaler.Marshal(msg)
	if err != nil {
		return p, fmt.Errorf("message %s: Watermill's marshaler: %w", driver.MessageID(msg), err)
	}
	if p.Headers == nil {
		p.Headers = make(amqp.Table, len(kept))
	}
	maps.Copy(p.Headers, kept)
	p.DeliveryMode = amqp.Persistent
	if p.MessageId == "" && len(msg.UUID) <= maxNameBytes {
		p.MessageId = msg.UUID
	}
	if p.Type == "" {
		p.Type = fitting(msg.Metadata[driver.HeaderType], topic)
	}
	if instance := msg.Metadata[driver.HeaderInstance]; instance != "" {
		p.Headers[headerOwn] = ownMark(cfg.ownKey, instance, driver.MessageID(msg))
	}
	return p, nil
}

// unmarshal decodes a message with the service's marshaler. The headers of leat and the broker are not passed to it, since marshalers
// may refuse headers that are not text. Records of failures are read from the AMQP headers.
func (n *stockNames) unmarshal(msg *message.Message, d *amqp.Delivery) error {
	own, headers := make(message.Metadata), make(amqp.Table, len(d.Headers))
	for name, field := range d.Headers {
		switch {
		case strings.HasPrefix(name, privatePrefix), brokersOwn(name), name == headerTopic:
		case strings.HasPrefix(name, faultPrefix), name == headerLeftOut:
			own[name] = fieldText(field)
		default:
			headers[name] = field
		}
	}
	bare := *d
	bare.Headers = headers
	decoded, err := n.decode(bare)
	if err != nil {
		decoded = message.NewMessage(d.MessageId, d.Body)
	}
	if decoded.Metadata == nil {
		decoded.Metadata = make(message.Metadata)
	}
	driver.DropPrivate(decoded.Metadata)
	delete(decoded.Metadata, userHeader)
	maps.Copy(decoded.Metadata, own)
	msg.UUID, msg.Metadata, msg.Payload = cmp.Or(decoded.UUID, d.MessageId), decoded.Metadata, decoded.Payload
	return err
}

// decode calls the service's marshaler, which may panic over what a producer has written.
func (n *stockNames) decode(d amqp.Delivery) (msg *message.Message, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = driver.NewPanicError(v)
		}
	}()
	msg, err = n.marshaler.Unmarshal(d)
	if err == nil && msg == nil {
		err = errors.New("it returned no message")
	}
	return msg, err
}
