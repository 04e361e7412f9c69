package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/backoff"
)

const (
	// lockSuffix ends the name of the queue that is a lock.
	lockSuffix = ".poison.lock"
	// lockPause is the interval between attempts to take a lock that another connection has.
	lockPause = 25 * time.Millisecond
)

// lockOnBroker takes a lock on the broker: an exclusive queue, which the broker deletes when the connection ends.
func lockOnBroker(ctx context.Context, conn *amqp.Connection, name string) (unlock func(), err error) {
	const transient, ours = false, true
	for {
		ch, err := conn.Channel()
		if err != nil {
			return nil, err
		}
		_, err = ch.QueueDeclare(name, transient, autoDelete, ours, noWait, nil)
		if err == nil {
			return func() {
				_, _ = ch.QueueDelete(name, false, false, noWait) // else the connection's end does it
				closeQuietly(ch)
			}, nil
		}
		closeQuietly(ch)
		if !isCode(err, amqp.ResourceLocked) {
			return nil, err
		}
		if err := sleep(ctx, lockPause); err != nil {
			return nil, fmt.Errorf("another process reads the queue: %w", err)
		}
	}
}

func isCode(err error, code int) bool {
	var refused *amqp.Error
	return errors.As(err, &refused) && refused.Code == code
}

// sleep blocks for d. It returns ctx's cause if ctx is done first.
func sleep(ctx context.Context, d time.Duration) error {
	if !backoff.Sleep(ctx, d) {
		return context.Cause(ctx)
	}
	return nil
}
