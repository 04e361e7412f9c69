package cli

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestTable_fitsTheTerminal(t *testing.T) {
	const event = "0198c0de-0000-7000-8000-0123456789ab"
	rows := func() *tableWriter {
		table := newTable(nil, column{"ID", id}, column{"GROUP", phrase}, column{name: "AGE"}, column{"ERROR", prose})
		table.row(event, "shop.send-receipt", "2m05s", strings.Repeat("the mail server is away ", 5))
		table.row("7", "shop.ledger", "1s", "card\x1b[31m declined")
		return table
	}
	for _, c := range []struct {
		width int
		want  []string
	}{
		{0, []string{event, "shop.send-receipt", strings.Repeat(" the mail server is away", 5)}},
		{120, []string{event, "shop.send-receipt", "…"}},
		{72, []string{"…456789ab", "shop.send-receipt", "…"}},
		{60, []string{"…456789ab", "shop.send-re", "…"}},
	} {
		table := rows().render(c.width, false)
		for _, want := range c.want {
			require.Contains(t, table, want, "at %d columns:\n%s", c.width, table)
		}
		require.Contains(t, table, `card\x1b[31m declined`)
		for line := range strings.Lines(table) {
			if c.width > 0 {
				require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), c.width, "at %d columns: %s", c.width, line)
			}
			require.Equal(t, strings.TrimRight(line, " \n"), strings.TrimSuffix(line, "\n"), "no spaces at the end")
		}
	}
	require.NotContains(t, rows().render(0, false), "\x1b")
}

func TestShortID_standsForTheWhole(t *testing.T) {
	const event = "0198c0de-0000-7000-8000-0123456789ab"
	require.Equal(t, "…456789ab", shortID(event))
	require.Equal(t, "12345678", shortID("12345678"))
	require.True(t, isShortFor(shortID(event), event))
	require.True(t, isShortFor("6789ab", event))
	require.False(t, isShortFor("789ab", event), "too short to name one")
	require.False(t, isShortFor("…", event))
}
