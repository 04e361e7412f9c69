package redisstore_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/middleware/redisstore"
)

// FuzzOpen opens stores by URL, and reaches none.
func FuzzOpen(f *testing.F) {
	for _, rest := range []string{"@h:1/0", "@h/16?pool_size=3", "/@h", "?@h", "#@h", "@h:x/", "@[::1]:6379/0?dial_timeout=-1s", "@h/0?unknown=1", "@h,i/0"} {
		f.Add("redis", rest)
		f.Add("rediss", rest)
	}
	f.Fuzz(func(t *testing.T, scheme, rest string) {
		if strings.Contains(scheme+rest, "S3cret") {
			t.Skip()
		}
		store, err := redisstore.Open(scheme + "://user:S3cret" + rest)
		if err != nil {
			require.NotContains(t, err.Error(), "S3cret")
			return
		}
		require.NoError(t, store.Close())
	})
}
