package console_test

import (
	"html"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
)

var messageLink = regexp.MustCompile(`href="(message\?[^"]*)"`)

// TestConsole_ofRabbitMQ: leat console, in a process without the service, reads and replays the poison queue of a group on
// RabbitMQ, which is read by taking its messages and putting them back.
func TestConsole_ofRabbitMQ(t *testing.T) {
	raw := testenv.RabbitMQVhost(t)
	s := newShop(t, raw, true)
	s.poison(t, OrderPaid{Order: "o-1", Note: "first"}, OrderPaid{Order: "o-2"})
	operator, err := transports.Open(t.Context(), raw)
	require.NoError(t, err)
	defer func() { require.NoError(t, operator.Close(t.Context())) }()
	server := httptest.NewServer(console.New(console.Config{Transport: operator, Actions: true, Logger: slog.New(slog.DiscardHandler)}))
	defer server.Close()
	s.url = server.URL + "/"

	var overview answer
	require.Eventually(t, func() bool { // the management API counts with a delay
		overview = s.get(t, "")
		return strings.Contains(overview.text, "1 group needs attention")
	}, patience, 50*time.Millisecond)
	require.Contains(t, overview.text, group)

	list := s.get(t, "group?"+query("group", group))
	require.Contains(t, list.text, "2 messages")
	require.Contains(t, list.text, "order o-1: card declined")
	require.Contains(t, s.get(t, "group?"+query("group", group, "key", "o-2")).text, "1 message matches")
	for _, onlyInTheService := range []string{"Time of a delivery", "Handled a second"} {
		require.NotContains(t, list.text, onlyInTheService)
	}

	link := html.UnescapeString(messageLink.FindStringSubmatch(list.body)[1])
	message := s.get(t, link)
	require.Contains(t, message.text, "order o-1: card declined")
	require.Contains(t, message.text, "after 1 delivery and 1 try")
	require.Contains(t, message.text, `"note": "first"`)
	require.Equal(t, 2, s.poisoned(t), "it is there as before")

	s.failing.Store(false)
	ask := s.get(t, "confirm?do=replay&"+strings.TrimPrefix(link, "message?"))
	require.Contains(t, ask.text, "Replay 1 message?")
	require.Contains(t, s.post(t, "act", ask).text, "1 message replayed")
	require.Eventually(t, func() bool { return s.handled.Load() == 1 }, patience, 5*time.Millisecond)
	s.awaitPoisoned(t, 1)
	require.Contains(t, s.get(t, "group?"+query("group", group)).text, "order o-2: card declined")
	require.NotContains(t, s.get(t, "group?"+query("group", group)).text, "order o-1: card declined")
}
