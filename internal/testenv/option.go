package testenv

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// WithOption returns a URL with one more option.
func WithOption(t testing.TB, raw, name, value string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}
