package testenv

import (
	"net/url"
	"strings"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"
)

// Forget takes what a test has made off RabbitMQ: every queue of the groups, and the exchange that the
// transport's URL names. For the URL of any other transport it does nothing: databases and files are
// dropped as a whole.
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
		for _, suffix := range []string{"", ".poison", ".held", ".lead"} { // ordered groups have them all
			if err == nil {
				_, err = ch.QueueDelete(group+suffix, false, false, false) // one that is not there is no error
			}
		}
	}
	if err == nil && exchange != "" {
		err = ch.ExchangeDelete(exchange, false, false)
	}
	if err != nil {
		t.Errorf("clean up RabbitMQ: %s", err)
	}
}
