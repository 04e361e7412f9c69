package queue

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzDecodeHeaders decodes bytes that another writer may have put into the column headers.
func FuzzDecodeHeaders(f *testing.F) {
	for _, text := range []string{"", "a=b\n", "a", "a=b", "a\n", "\\", "a\\n=b\n", "a=b\na=c\n", "=\n", "\xff=\x00\n", `{"a":"b"}`, `{"a":"\u00e9","b":"base64:/w=="}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		headers, err := decodeHeaders(text)
		if err != nil {
			return
		}
		again, err := decodeHeaders(encodeJSON(headers))
		require.NoError(t, err)
		require.Equal(t, headers, again)
	})
}
