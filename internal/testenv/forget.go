package testenv

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"
)

// Forget deletes what a test has created on RabbitMQ: all queues of the groups, and the exchange in the transport's URL. For the
// URL of another transport it does nothing: databases and files are deleted as a whole.
func Forget(t testing.TB, transport string, groups ...string) {
	t.Helper()
	u, err := url.Parse(transport)
	if err != nil || !strings.HasPrefix(u.Scheme, "amqp") {
		return
	}
	exchange := u.Query().Get("exchange")
	u.RawQuery = ""
	conn, err := rabbit.Dial(u.String())
	if err != nil {
		t.Errorf("clean up RabbitMQ: %s", err)
		return
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	for _, group := range groups {
		for _, suffix := range []string{
			"", ".poison", ".held", ".lead", ".retry.1s", ".retry.5s", ".retry.30s", ".retry.5m", ".retry.30m", // ordered groups have them all
		} {
			if err == nil {
				_, err = ch.QueueDelete(group+suffix, false, false, false) // one that is not there is no error
			}
		}
	}
	if err == nil && exchange != "" {
		err = ch.ExchangeDelete(exchange, false, false)
		for _, queueType := range []string{"quorum", "classic"} {
			if err == nil {
				err = forgetDelays(ch, queueType, exchange)
			}
		}
	}
	if err != nil {
		t.Errorf("clean up RabbitMQ: %s", err)
	}
}

// forgetDelays deletes the queues and exchanges for what is published with a delay to the exchange.
func forgetDelays(ch *rabbit.Channel, queueType, exchange string) (err error) {
	parts := []string{"in", "out", "unwanted"}
	for n := range 22 {
		parts = append(parts, fmt.Sprintf("%02d", n))
	}
	for _, part := range parts {
		name := "leat.delay." + queueType + ".publish." + part + "." + exchange
		if err == nil {
			_, err = ch.QueueDelete(name, false, false, false)
		}
		if err == nil {
			err = ch.ExchangeDelete(name, false, false)
		}
	}
	return err
}
