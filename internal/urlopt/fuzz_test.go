package urlopt_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/urlopt"
)

func FuzzOptions(f *testing.F) {
	for _, query := range []string{"", "name=leat&size=7&wait=3s&strict=true&mode=fast", "size=-1", "size=99999999999999999999", "wait=1e9h", "mode=%zz", "name=a;b", "=&=", "%00=%ff"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		o := urlopt.New(&url.URL{RawQuery: query})
		_ = o.String("name", "x")
		size := o.Int("size", 1, 1)
		wait := o.Duration("wait", time.Second)
		_ = o.Bool("strict", false)
		mode := o.Choice("mode", "slow", "slow", "fast")
		if o.Err() != nil {
			return
		}
		require.Positive(t, size)
		require.Positive(t, wait)
		require.Contains(t, []string{"slow", "fast"}, mode)
	})
}
