package amqp_test

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/amqp"
)

// counters are the headers that leat and the broker count in. Anybody may write them.
var counters = []string{"leat-attempt", "leat-crashes", "x-delivery-count", "x-acquired-count", "leat-held-rev", "leat-held-place", "leat-poison-rev"}

// requireSane holds for every message.
func requireSane(t testing.TB, d *rabbit.Delivery) amqp.Decoded {
	t.Helper()
	x := amqp.DecodeForTest(d, "ledger")
	const most = 1 << 30
	for what, n := range map[string]int64{
		"attempts": int64(x.Attempts), "crashes": int64(x.Crashes), "revision": int64(x.Rev), "poison revision": x.PoisonRev,
	} {
		require.GreaterOrEqual(t, n, int64(0), what)
		require.LessOrEqual(t, n, int64(most), what)
	}
	require.LessOrEqual(t, x.Crashes, x.Attempts+most)
	require.GreaterOrEqual(t, x.Place, int64(0))
	require.Less(t, x.Place, int64(math.MaxInt64/2)+1, "there are places behind it")
	require.True(t, utf8.ValidString(x.Topic), "topic %q", x.Topic)
	require.LessOrEqual(t, len(x.Topic), 255)
	for name := range x.Message.Metadata {
		require.True(t, utf8.ValidString(name), "header %q", name)
	}
	return x
}

func TestDecode_countersOfAnySize(t *testing.T) {
	values := []any{
		int8(-1), int16(-1), int32(math.MinInt32), int64(math.MinInt64), int64(-1), int64(0), int64(1), int64(1 << 40), int64(math.MaxInt64),
		uint16(math.MaxUint16), uint32(math.MaxUint32), byte(255), float64(-1e300), float32(1), "12", nil, true, time.Unix(0, 0),
		[]byte{1},
		[]any{int64(-5)},
		rabbit.Table{"x": int64(-1)},
		rabbit.Decimal{Scale: 255, Value: -1},
	}
	for _, name := range counters {
		for _, value := range values {
			requireSane(t, &rabbit.Delivery{Redelivered: true, RoutingKey: "order.paid.v1", Headers: rabbit.Table{name: value}})
		}
	}
	for _, count := range values {
		deaths := make([]any, 100)
		for i := range deaths {
			deaths[i] = rabbit.Table{"queue": "ledger", "count": count, "time": time.Unix(math.MaxInt32, 0)}
		}
		requireSane(t, &rabbit.Delivery{Headers: rabbit.Table{"x-death": deaths, "leat-attempt": int64(math.MaxInt64), "x-delivery-count": int64(math.MaxInt64)}})
	}
	x := requireSane(t, &rabbit.Delivery{Headers: rabbit.Table{"leat-attempt": int32(3), "x-delivery-count": int64(2), "x-acquired-count": int64(4), "leat-crashes": int32(1)}})
	require.Equal(t, 7, x.Attempts)
	require.Equal(t, 5, x.Crashes)
}

func TestDecode_namesThatAreNotUTF8(t *testing.T) {
	x := requireSane(t, &rabbit.Delivery{
		RoutingKey: "order.\xff\xfe", Headers: rabbit.Table{"bad\xff": "value", "cloudEvents:\xff": "x", "leat-topic": strings.Repeat("\xffé", 30_000)},
	})
	require.Equal(t, "value", x.Message.Metadata["bad\uFFFD"])
	require.Equal(t, "order.\uFFFD", amqp.DecodeForTest(&rabbit.Delivery{RoutingKey: "order.\xff\xfe"}, "ledger").Topic)
}

func FuzzDecode(f *testing.F) {
	f.Add("leat-attempt", int64(math.MinInt64), "order.paid.v1", "text", byte(0))
	f.Add("x-delivery-count", int64(math.MaxInt64), "\xff", "\xff", byte(1))
	f.Add("leat-held-place", int64(math.MaxInt64), "", "{}", byte(2))
	f.Add("leat-extra", int64(1), "a", `{"amqp_user_id":"YQ=="}`, byte(3))
	f.Fuzz(func(t *testing.T, name string, n int64, key, text string, kind byte) {
		h := rabbit.Table{}
		for i, counter := range counters {
			if kind&(1<<i) != 0 {
				h[counter] = n
			}
		}
		h[name] = text
		if kind&1 != 0 {
			h[name] = n
		}
		h["x-death"] = []any{rabbit.Table{"queue": text, "count": n, "reason": key}}
		h["leat-topic"] = key
		requireSane(t, &rabbit.Delivery{
			Headers: h, RoutingKey: key, Exchange: text, MessageId: text, ContentType: text, Redelivered: kind&2 != 0, Body: []byte(text),
			Timestamp: time.Unix(n>>20, 0),
		})
	})
}

// A message's print is of its id and body, and of nothing else: a copy has it, too. FNV, which it was before, lets
// anybody make a body with the print of another message.
func TestPrint_isACryptographicHash(t *testing.T) {
	printed := func(id, body string) string {
		text, err := amqp.PrintForTest(&rabbit.Delivery{MessageId: id, Body: []byte(body), RoutingKey: id + body})
		require.NoError(t, err)
		return text
	}
	require.Equal(t, strings.Repeat("0", 32), printed("", "body"), "without an id, messages may well be equal")
	require.Equal(t, "5dca76783c8c8131", printed("1", "{}")[:16], "the first half of SHA-256")
	require.NotEqual(t, printed("1", "2"), printed("12", ""))
	require.NotEqual(t, printed("1\x00", ""), printed("1", "\x00"))
}
