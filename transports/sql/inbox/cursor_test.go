package inbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestInboxCursor_beginsAnewForAGroupThatComesDuringAPass checks that a new group rewinds the cursor, because the current pass ignores it.
func TestInboxCursor_beginsAnewForAGroupThatComesDuringAPass(t *testing.T) {
	c := cursor{groups: make(map[string]bool)}
	c.use("mail.first")
	groups, from, pass := c.start()
	require.Equal(t, []any{"mail.first"}, groups)
	require.Zero(t, from)
	c.use("mail.second")
	c.move(pass, 100)
	groups, from, pass = c.start()
	require.Len(t, groups, 2)
	require.Zero(t, from)
	c.move(pass, 100)
	_, from, _ = c.start()
	require.EqualValues(t, 100, from)
}
