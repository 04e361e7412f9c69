package redisstore_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/middleware"
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

// replying is a connection on which every command has the same reply.
type replying struct {
	net.Conn
	reply string
	rest  []byte
}

func (c *replying) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("\r\nhello\r\n")) { // the client's own
		c.rest = append(c.rest, "-ERR unknown command\r\n"...)
		return len(p), nil
	}
	c.rest = append(c.rest, c.reply...)
	return len(p), nil
}

func (c *replying) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *replying) Close() error                     { return nil }
func (c *replying) SetDeadline(time.Time) error      { return nil }
func (c *replying) SetReadDeadline(time.Time) error  { return nil }
func (c *replying) SetWriteDeadline(time.Time) error { return nil }
func (c *replying) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// longReply is a string, an error or a text with a length of a megabyte or more.
var longReply = regexp.MustCompile(`[$!=]\+?0*[0-9]{7}`)

// FuzzReplies claims and ends a claim on a Redis that replies anything. A claim is never made up, and never lasts for a
// negative time.
func FuzzReplies(f *testing.F) {
	for _, reply := range []string{
		":0\r\n", ":-1\r\n", ":-2\r\n", ":1\r\n", ":9223372036854775807\r\n", ":-9223372036854775808\r\n", ":92233720368547758070\r\n", "$2\r\n-1\r\n",
		"$-1\r\n", "*0\r\n", "*1\r\n:1\r\n", "-ERR no\r\n", "-NOSCRIPT no\r\n", "+OK\r\n", "_\r\n", "#t\r\n", ",1e400\r\n", "%1\r\n+a\r\n:1\r\n", "", ":", "$5\r\nab",
	} {
		f.Add(reply)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		if strings.ContainsAny(reply, "*~>%|") || longReply.MatchString(reply) || len(reply) > 1<<10 {
			t.Skip() // go-redis allocates what a reply says that it has; see SECURITY.md
		}
		client := redis.NewClient(&redis.Options{
			Dialer: func(context.Context, string, string) (net.Conn, error) {
				return &replying{reply: reply}, nil
			},
			Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, PoolSize: 1,
		})
		defer client.Close()
		store, err := redisstore.New(client)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		claim, err := store.Claim(ctx, "key", time.Minute)
		if err == nil {
			require.GreaterOrEqual(t, claim.Left, time.Duration(0), "%q", reply)
		} else {
			require.NotEqual(t, middleware.Done, claim.State, "%q", reply)
		}
		_ = store.Renew(ctx, claim, time.Minute)
		_ = store.Done(ctx, claim, time.Hour)
		_ = store.Release(ctx, claim)
	})
}
