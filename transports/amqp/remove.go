package amqp

import (
	"context"
	"fmt"
	"slices"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.GroupRemover = (*Transport)(nil)

// RemoveGroup implements [driver.GroupRemover]. It deletes the group's queues over AMQP, for which the user needs the right to
// configure them. Their names are read from the management API, since AMQP does not list queues; if the API can't be read, the error
// is a [*ManagementError]. A redelivery that still waits in the queues that groups share for delays (leat.delay.…) ends in the queue
// for redeliveries without a group, which leat doctor shows. With topology=watermill it returns [driver.ErrUnsupported], because
// plain Watermill services may use the same queues.
func (t *Transport) RemoveGroup(ctx context.Context, group string) error {
	if t.topology.watermill() {
		return fmt.Errorf("amqp: remove group %s: plain Watermill services may use its queues; delete them on the broker: %w", group, driver.ErrUnsupported)
	}
	s, err := t.inspector.survey(ctx)
	if err != nil {
		return fmt.Errorf("amqp: remove group %s: %w", group, err)
	}
	if !slices.ContainsFunc(s.groups(), func(g surveyed) bool { return g.name == group }) {
		return fmt.Errorf("amqp: remove group %s: %w", group, driver.ErrNotFound)
	}
	queues := s.queuesOf(group)
	return t.inspector.inspect(ctx, "remove group "+group, func(i *inspection) error { return i.remove(group, queues) })
}

// queuesOf returns the queues of a group, the one that it is known by last.
func (s *survey) queuesOf(group string) (all []apiQueue) {
	for name, q := range s.queues {
		if groupOfOwn(name) == group && !isGroupQueue(q) {
			all = append(all, q)
		}
	}
	return append(all, s.queues[group])
}

// remove deletes the group's queues. If it fails halfway, the group's queue is still there, so that it can be repeated.
func (i *inspection) remove(group string, queues []apiQueue) error {
	// A quorum queue can't be deleted on condition that it is unused, so look first. The API's counts are some seconds old.
	for _, name := range []string{group, keysName(group)} {
		q, _, err := i.counts(name)
		switch {
		case err != nil:
			return err
		case i.asker.unsure:
			return fmt.Errorf("queue %q: its leader does not answer, so it is not known whether it has a consumer; try again later", name)
		case q.Consumers > 0:
			return driver.ErrConsumed
		}
	}
	for _, q := range queues {
		if q.Consumers != nil && *q.Consumers > 0 && (q.Name == group || q.Name == keysName(group)) {
			return driver.ErrConsumed
		}
	}
	for _, q := range queues {
		ifUnused, ifEmpty := q.Type == string(Classic), false
		err := i.do(func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(q.Name, ifUnused, ifEmpty, noWait)
			return err
		})
		if isCode(err, amqp.PreconditionFailed) {
			return fmt.Errorf("queue %q is in use: %w", q.Name, driver.ErrConsumed)
		}
		if err != nil {
			return fmt.Errorf("queue %q: %w", q.Name, err)
		}
	}
	return nil
}
