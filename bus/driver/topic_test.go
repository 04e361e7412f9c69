package driver_test

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestValidateTopic_rejectsInvalidTopicsAndPatterns(t *testing.T) {
	for name, c := range map[string]struct{ topic, want string }{
		"empty":                   {"", "empty"},
		"a dot in front":          {".order", "empty segment"},
		"a dot at the end":        {"order.", "empty segment"},
		"two dots":                {"order..paid", "empty segment"},
		"a space":                 {"order paid", "white space"},
		"a no-break space":        {"order\u00a0paid", "white space"},
		"a newline":               {"order\npaid", "white space or a control character"},
		"a NUL":                   {"order\x00", "control character"},
		"invalid UTF-8":           {"order\xff", "not valid UTF-8"},
		"256 bytes":               {strings.Repeat("o", 256), "256 bytes; at most 255 fit"},
		"256 bytes of long runes": {strings.Repeat("ö", 128), "256 bytes"},
		"a hash":                  {"order.#", "wildcard"},
		"a wildcard in a segment": {"order.pa*", "wildcard"},
		"a > in a segment":        {"order.pa>", "wildcard"},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, driver.ValidateTopic(c.topic), c.want)
			require.ErrorContains(t, driver.ValidatePattern(c.topic), c.want)
		})
	}
	t.Run("a pattern is no topic to publish to", func(t *testing.T) {
		require.ErrorContains(t, driver.ValidateTopic("order.*"), "wildcards belong in a subscription")
		require.ErrorContains(t, driver.ValidateTopic("order.>"), "wildcards belong in a subscription")
	})
	t.Run("a rest before the end", func(t *testing.T) {
		require.ErrorContains(t, driver.ValidatePattern("order.>.v1"), "before its end")
	})
}

func TestValidateTopic_acceptsValidTopicsAndPatterns(t *testing.T) {
	for _, topic := range []string{"o", "order.paid.v1", "Order-Paid_1.v1", "bestellung.größe", "a/b:c", strings.Repeat("o", 255)} {
		require.NoError(t, driver.ValidateTopic(topic))
		require.NoError(t, driver.ValidatePattern(topic))
		require.False(t, driver.IsPattern(topic))
	}
	for _, pattern := range []string{"*", ">", "order.*", "*.paid.*", "order.>", "*.>"} {
		require.NoError(t, driver.ValidatePattern(pattern))
		require.True(t, driver.IsPattern(pattern))
	}
}

func TestMatchTopic(t *testing.T) {
	for _, c := range []struct {
		pattern, topic string
		want           bool
	}{
		{"order.paid.v1", "order.paid.v1", true},
		{"order.paid.v1", "order.paid.v2", false},
		{"order.paid", "order.paid.v1", false},
		{"order.paid.v1", "order.paid", false},
		{"order.*", "order.paid", true},
		{"order.*", "order", false},
		{"order.*", "order.paid.v1", false},
		{"*.paid.*", "order.paid.v1", true},
		{"*.paid.*", "order.placed.v1", false},
		{"order.>", "order.paid", true},
		{"order.>", "order.paid.v1", true},
		{"order.>", "order", false},
		{"order.>", "orders.paid", false},
		{">", "order", true},
		{">", "order.paid.v1", true},
		{">", "", false},
		{"*", "", true}, // no topic is empty, see ValidateTopic
		{"*.>", "order", false},
		{"*.>", "order.paid", true},
	} {
		require.Equal(t, c.want, driver.MatchTopic(c.pattern, c.topic), "%s takes %s", c.pattern, c.topic)
	}
}

// FuzzMatchTopic holds the matcher against a regular expression that says the same.
func FuzzMatchTopic(f *testing.F) {
	for _, seed := range [][2]string{{"order.*", "order.paid"}, {"order.>", "order.paid.v1"}, {"*.*", "a.b"}, {">", "a"}, {"a.*.c", "a.b.c"}, {"a.b", "a.b"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, topic string) {
		if driver.ValidatePattern(pattern) != nil || driver.ValidateTopic(topic) != nil {
			t.Skip()
		}
		expression := strings.NewReplacer(`\*`, `[^.]+`, `>`, `.+`).Replace(regexp.QuoteMeta(pattern))
		want := regexp.MustCompile(`^(?s:` + expression + `)$`).MatchString(topic)
		require.Equal(t, want, driver.MatchTopic(pattern, topic), "%s takes %s", pattern, topic)

		var table driver.TopicTable[int]
		table.Add(1, pattern)
		for range 2 { // the second answer is from the cache
			require.Equal(t, want, len(table.Match(topic)) == 1)
		}
	})
}

func TestTopicTable(t *testing.T) {
	t.Run("each value once, in the order in which they were added", func(t *testing.T) {
		var table driver.TopicTable[string]
		require.Empty(t, table.Match("order.paid.v1"))
		table.Add("ledger", "order.paid.v1", "order.*.*")
		table.Add("audit", "order.>")
		table.Add("mail", "mail.>")
		require.Equal(t, []string{"ledger", "audit"}, table.Match("order.paid.v1"))
		require.Equal(t, []string{"audit"}, table.Match("order.paid"))
	})
	t.Run("what it has answered does not hide what is added or removed later", func(t *testing.T) {
		var table driver.TopicTable[string]
		require.Empty(t, table.Match("order.paid.v1"))
		table.Add("ledger", "order.>")
		require.Equal(t, []string{"ledger"}, table.Match("order.paid.v1"))
		table.Set("ledger")
		require.Empty(t, table.Match("order.paid.v1"))
	})
	t.Run("it knows more topics than it remembers", func(t *testing.T) {
		var table driver.TopicTable[string]
		table.Add("audit", "order.>")
		for i := range 10_000 {
			require.Equal(t, []string{"audit"}, table.Match(fmt.Sprintf("order.t%d", i)))
		}
		require.Empty(t, table.Match("mail.t1"))
	})
	t.Run("a value may change its patterns", func(t *testing.T) {
		var table driver.TopicTable[string]
		table.Add("ledger", "order.>")
		table.Set("ledger", "mail.>")
		require.Empty(t, table.Match("order.paid.v1"))
		require.Equal(t, []string{"ledger"}, table.Match("mail.sent.v1"))
	})
	t.Run("concurrently", func(t *testing.T) {
		var table driver.TopicTable[int]
		table.Add(0, "order.>")
		var wg sync.WaitGroup
		for i := 1; i <= 4; i++ {
			wg.Go(func() {
				for range 200 {
					table.Add(i, "order.*")
					table.Set(i)
				}
			})
			wg.Go(func() {
				for range 200 {
					if got := table.Match("order.paid"); len(got) == 0 || got[0] != 0 {
						t.Errorf("the first value is always there; got %v", got)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, []int{0}, table.Match("order.paid"))
	})
}
