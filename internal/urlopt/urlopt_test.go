package urlopt_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/urlopt"
)

func options(t *testing.T, query string) *urlopt.Options {
	return urlopt.New(&url.URL{RawQuery: query})
}

func TestOptions_haveDefaults(t *testing.T) {
	o := options(t, "name=leat&size=7&wait=3s&strict=true&mode=fast")
	require.Equal(t, "leat", o.String("name", "x"))
	require.Equal(t, "y", o.String("other", "y"))
	require.Equal(t, 7, o.Int("size", 1, 0))
	require.Equal(t, 2, o.Int("count", 2, 0))
	require.Equal(t, 3*time.Second, o.Duration("wait", time.Minute))
	require.Equal(t, time.Minute, o.Duration("lease", time.Minute))
	require.True(t, o.Bool("strict", false))
	require.True(t, o.Bool("loud", true))
	require.Equal(t, "fast", o.Choice("mode", "slow", "slow", "fast"))
	require.NoError(t, o.Err())
}

func TestOptions_errorsHaveFixes(t *testing.T) {
	for query, want := range map[string]string{
		"prefech=1":           `unknown option "prefech"; known: lease, mode, prefetch, strict. Did you mean "prefetch"?`,
		"zzz=1":               `unknown option "zzz"; known: lease, mode, prefetch, strict.`,
		"prefetch=0":          "a whole number of at least 1",
		"prefetch=many":       "a whole number of at least 1",
		"lease=-3s":           "a positive duration",
		"lease=3":             "a positive duration",
		"strict=perhaps":      "true or false",
		"mode=medium":         "one of slow, fast",
		"mode=slow&mode=fast": "option mode is given 2 times",
		"mode=%zz":            "the query can't be parsed",
	} {
		t.Run(query, func(t *testing.T) {
			o := options(t, query)
			o.Int("prefetch", 5, 1)
			o.Duration("lease", time.Second)
			o.Bool("strict", false)
			o.Choice("mode", "slow", "slow", "fast")
			require.ErrorContains(t, o.Err(), want)
		})
	}
	require.ErrorContains(t, options(t, "a=1").Err(), "there are no options")
}

func TestNearest_isSimilarOrEmpty(t *testing.T) {
	words := []string{"memory", "amqp", "postgres", "sqlite", "DEDUP", "DEDUP_KEEP", "REDIS_URL"}
	for word, want := range map[string]string{
		"memroy": "memory", "postgers": "postgres", "amqps": "amqp", "SQLITE": "sqlite", "kafka": "", "": "",
		"REDIS": "REDIS_URL", "DEDUP_KEEPS": "DEDUP_KEEP", "DEDUP_KE": "DEDUP_KEEP", "post": "postgres", "re": "",
	} {
		require.Equal(t, want, urlopt.Nearest(word, words), word)
	}
}
