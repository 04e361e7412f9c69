package amqp

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.ConsumerLister = (*Transport)(nil)

// Arguments of a consumer that show others its program and its topics, one per line. The broker ignores them.
const (
	argumentProgram = "leat_program"
	argumentTopics  = "leat_topics"

	maxArgument = 3000 // both, so that they fit into the smallest frame, 4096 bytes; topics that are longer are unknown to others, as a part of them would be wrong
)

// consumerArguments returns the arguments of a consumer of a group's queue.
func consumerArguments(s driver.Subscription) amqp.Table {
	topics := strings.Join(s.Topics, "\n")
	if s.Program == "" || len(s.Program)+len(topics) > maxArgument {
		return nil
	}
	return amqp.Table{argumentProgram: s.Program, argumentTopics: topics}
}

// apiConsumer is a consumer of a queue. The details are empty while its channel begins or ends.
type apiConsumer struct {
	Arguments object `json:"arguments"`
	Channel   object `json:"channel_details"`
}

func (c apiConsumer) consumer() (found driver.Consumer) {
	found.Program, _ = c.Arguments[argumentProgram].(string)
	found.Place, _ = c.Channel["peer_host"].(string)
	if topics, _ := c.Arguments[argumentTopics].(string); topics != "" {
		found.Topics = strings.Split(topics, "\n")
	}
	return found
}

// Consumers implements [driver.ConsumerLister] by the management API that the URL names. Without one it returns
// [driver.ErrUnsupported], because services call the API only if they are told to.
func (t *Transport) Consumers(ctx context.Context, group string) (all driver.GroupConsumers, err error) {
	if t.cfg.Management == "" || t.topology.watermill() {
		return all, driver.ErrUnsupported
	}
	found, err := t.FindGroup(ctx, group)
	if err != nil || found == "" {
		return all, err
	}
	m, err := newManagement(&t.cfg)
	if err != nil {
		return all, fmt.Errorf("amqp: list consumers: %w", err)
	}
	defer m.client.CloseIdleConnections()
	queue := m.inVhost("queues") + "/" + url.PathEscape(group)
	bindings, err := fetchAll[apiBinding](ctx, m, "management", queue+"/bindings", "source,routing_key", false)
	var q struct {
		Consumers []apiConsumer `json:"consumer_details"`
	}
	if err == nil {
		err = m.get(ctx, "management", queue, url.Values{"columns": {"consumer_details"}}, &q)
	}
	if err != nil {
		return all, fmt.Errorf("amqp: list consumers: %w", err)
	}
	for _, b := range bindings {
		if b.Source == t.topology.cfg.ExchangeName {
			all.Topics = append(all.Topics, patternOf(b.Key))
		}
	}
	for _, c := range q.Consumers {
		all.Consumers = append(all.Consumers, c.consumer())
	}
	slices.Sort(all.Topics)
	return all, nil
}
