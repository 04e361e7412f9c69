//go:build unix

package amqp_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// guide returns the page for those who operate the broker.
func guide(t testing.TB) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "rabbitmq-in-production.md"))
	require.NoError(t, err)
	return string(page)
}

// addDocumentedUser makes a user with the rights that the guide gives to one of its users. The groups are name.*, where the
// guide has shop.*.
func addDocumentedUser(t testing.TB, b *broker, vhost, name, like string) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^rabbitmqctl set_permissions ` + like + ` '(.*)' '(.*)' '(.*)'$`)
	rights := line.FindStringSubmatch(strings.ReplaceAll(guide(t), `shop\.`, name+`\.`))
	require.NotNil(t, rights, "the guide has no rights of user %s", like)
	b.addUser(t, vhost, name, rights[1], rights[2], rights[3])
}

// The guide has a row for each queue and exchange that leat makes, no row for others, and says how many queues there are.
func TestGuide_explainsEveryQueueAndExchange(t *testing.T) {
	b, vhost, raw := managed(t)
	service := open(t, raw)
	var delays []time.Duration
	policy := bus.RetryPolicy{}.WithDefaults()
	for _, delay := range policy.Delays {
		if delay > policy.InProcess {
			delays = append(delays, delay)
		}
	}
	names := func(kind string) (all []string) {
		var rows []struct{ Name string }
		require.NoError(t, json.Unmarshal([]byte(b.names(t, kind, vhost)), &rows))
		for _, row := range rows {
			if row.Name != "" && !strings.HasPrefix(row.Name, "amq.") {
				all = append(all, row.Name)
			}
		}
		return all
	}
	subscribe(t, service, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Delays: delays})
	require.Len(t, names("queues"), 7+23)
	subscribe(t, service, driver.Subscription{
		Group: "shop.mail", Topics: []string{"order.paid.v1"}, Concurrency: 1, Delays: delays, Order: driver.OrderedByKey, Park: true,
	})
	require.Len(t, names("queues"), 7+10+23)
	require.NoError(t, service.Publish(t.Context(), "order.paid.v1", delayed("order.paid.v1", "later", time.Hour)))
	require.Len(t, names("queues"), 7+10+46)
	require.Contains(t, guide(t), "a group has 7 queues, or 10 if it is ordered, and a virtual host 23 more, with delayed publishing 46")

	_, table, _ := strings.Cut(guide(t), "\n| name |")
	table, _, _ = strings.Cut(table, "\n\n")
	holes := strings.NewReplacer("<group>", `shop\.(ledger|mail)`, "<delay>", `[0-9]+[smh]`, "<type>", "quorum", "<exchange>", "events", "NN", "[0-9]{2}")
	rows := make(map[string]bool) // and whether there is such a thing
	for line := range strings.Lines(table) {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| `") || strings.Contains(cells[3], "goes by itself") {
			continue
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			rows["^"+holes.Replace(regexp.QuoteMeta(name[1]))+"$"] = false
		}
	}
	for _, name := range append(names("queues"), names("exchanges")...) {
		explained := false
		for pattern := range rows {
			if regexp.MustCompile(pattern).MatchString(name) {
				explained, rows[pattern] = true, true
			}
		}
		require.True(t, explained, "the guide does not explain %s", name)
	}
	for pattern, there := range rows {
		require.True(t, there, "the guide explains %s, which is not there", pattern)
	}
	closeAll(t, service)
}

// The rights that the guide names for an operator suffice for every command, and not for the groups of others.
func TestRights_operatorsMayRepairTheirGroups(t *testing.T) {
	b, vhost, raw := managed(t)
	team := vhost // unique
	addDocumentedUser(t, b, vhost, team, "operator")
	require.Contains(t, guide(t), "rabbitmqctl set_user_tags operator monitoring\n")
	b.call(t, http.MethodPut, "/api/users/"+team, `{"password":"secret","tags":"monitoring"}`)
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.User = url.UserPassword(team, "secret")
	tool, _ := operator(t, u.String())
	service := open(t, raw)
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		group, topic := team+"."+unique("ledger"), unique("order.paid.v1")
		feed := subscribe(t, service, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1, Order: order, Park: order != driver.Unordered})
		publishKeyed(t, service, topic, "k/1", "k/2")
		poison(t, next(t, feed))
		if order == driver.Unordered {
			require.Equal(t, "k/2", take(t, feed))
		}
		queue := tool.PoisonQueue(group)
		var all []driver.PoisonedMessage
		for range 4 { // and it is written anew
			all, err = queue.List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, all, 1)
		}
		eventually(t, "it is counted", func() bool { return groupOf(t, tool, group).Poisoned == 1 })
		_, err = queue.Replay(t.Context(), all[0].ID)
		require.NoError(t, err)
		d := next(t, feed)
		require.Equal(t, "k/1", driver.MessageID(d.Message))
		poison(t, d)
		all, err = queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		require.NoError(t, queue.Put(t.Context(), all...))
		n, err := queue.Drop(t.Context(), all[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		if order != driver.Unordered {
			require.Equal(t, "k/2", take(t, feed), "the key is released")
		}
		require.NoError(t, tool.Publish(t.Context(), topic, newMessage(topic, "test")))
		require.Equal(t, "test", take(t, feed))
	}
	eventually(t, "the doctor finds no fault", func() bool { // the management API is some seconds late
		sound := true
		for _, f := range tool.Diagnose(t.Context()) {
			require.NotContains(t, f.Text, "needs the tag monitoring")
			if f.Err != nil {
				t.Logf("%s: %v", f.Check, f.Err)
				sound = false
			}
		}
		return sound
	})
	seen := errors.New("seen")
	publishing, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for publishing.Err() == nil {
			_ = service.Publish(publishing, "order.shipped.v1", newMessage("order.shipped.v1", "copy"))
		}
	}()
	require.ErrorIs(t, tool.Tail(t.Context(), "order.>", func(string, *message.Message) error { return seen }), seen)
	stop()
	<-ended

	subscribe(t, service, driver.Subscription{Group: "others.ledger", Topics: []string{"other.v1"}, Concurrency: 1})
	_, err = tool.PoisonQueue("others.ledger").List(t.Context(), "", 10)
	require.ErrorContains(t, err, "ACCESS_REFUSED")
	closeAll(t, service)
}
