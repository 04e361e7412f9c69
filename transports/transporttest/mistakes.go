package transporttest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testMistakes tests promise 12.
func testMistakes(t *testing.T, h Harness) {
	t.Run("an unknown option names the known ones", func(t *testing.T) {
		w := newWorld(t, h)
		separator := "?"
		if strings.Contains(h.URL, "?") {
			separator = "&"
		}
		transport, err := h.OpenURL(w.ctx, h.URL+separator+"prefech=10")
		if err == nil {
			require.NoError(t, transport.Close(w.ctx))
		}
		require.ErrorContains(t, err, `"prefech"`)
		require.ErrorContains(t, err, "known: ")
	})

	for _, c := range []struct {
		name string
		sub  driver.Subscription
		want string
	}{
		{"no group", driver.Subscription{Topics: []string{"a.v1"}, Concurrency: 1}, "empty"},
		{"a group with spaces", driver.Subscription{Group: "the ledger", Topics: []string{"a.v1"}, Concurrency: 1}, "' '"},
		{"a group that is too long", driver.Subscription{Group: strings.Repeat("g", 300), Topics: []string{"a.v1"}, Concurrency: 1}, "300 bytes"},
		{"no topic", driver.Subscription{Group: "ledger", Concurrency: 1}, "no topic"},
		{"a topic that is too long", driver.Subscription{Group: "ledger", Topics: []string{strings.Repeat("t", 300)}, Concurrency: 1}, "300 bytes"},
		{"a wildcard in the middle of a segment", driver.Subscription{Group: "ledger", Topics: []string{"order.pa*"}, Concurrency: 1}, "wildcard"},
		{"no concurrency", driver.Subscription{Group: "ledger", Topics: []string{"a.v1"}}, "concurrency"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, h)
			transport := w.open()
			_, err := transport.Subscribe(w.ctx, c.sub)
			require.ErrorContains(t, err, c.want)
		})
	}

	t.Run("consumers of one group that disagree", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		if !transport.Capabilities().ByKey {
			t.Skip("this transport has no orders to disagree about")
		}
		topic := w.topic("order.paid.v1")
		w.subscribe(transport, w.subscription("ledger", topic))
		ordered := w.subscription("ledger", topic)
		ordered.Order = driver.OrderedByKey
		_, err := transport.Subscribe(w.ctx, ordered)
		require.ErrorContains(t, err, w.group("ledger"))
		require.ErrorContains(t, err, "ordered by key")
	})
}
