package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
	"github.com/leatbus/leat/middleware/storetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestStore_contractOnMiniredis(t *testing.T) {
	storetest.Run(t, func(t *testing.T, test func(*testing.T, middleware.Store, func(time.Duration))) {
		server := miniredis.RunT(t)
		test(t, open(t, "redis://"+server.Addr()), server.FastForward)
	})
}

func TestStore_contractOnRedis(t *testing.T) {
	storetest.Run(t, func(t *testing.T, test func(*testing.T, middleware.Store, func(time.Duration))) {
		t.Parallel() // it waits for the clock most of the time
		test(t, newPrefixed(t), time.Sleep)
	})
}

func open(tb testing.TB, rawURL string) *redisstore.Store {
	tb.Helper()
	s, err := redisstore.Open(rawURL)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// unique begins the keys of one test.
func unique() string { return "leat:test:" + bus.NewID() + ":" }

// forget deletes keys from the tests' Redis. They are known by name: to look for them could take long among
// those of others.
func forget(tb testing.TB, keys ...string) {
	tb.Helper()
	opts, err := redis.ParseURL(testenv.Redis(tb))
	if err != nil {
		tb.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer client.Close()
	for some := range slices.Chunk(keys, 1000) {
		if err := client.Unlink(context.Background(), some...).Err(); err != nil {
			tb.Error(err)
		}
	}
}

// prefixed lets a test use a server that is shared with others.
type prefixed struct {
	middleware.Store

	prefix string
	used   sync.Map // keys
}

func newPrefixed(t *testing.T) *prefixed {
	p := &prefixed{Store: open(t, testenv.Redis(t)), prefix: unique()}
	t.Cleanup(func() {
		for key := range p.used.Range {
			forget(t, key.(string))
		}
	})
	return p
}

func (p *prefixed) Claim(ctx context.Context, key string, lease time.Duration) (middleware.Claim, error) {
	p.used.Store(p.prefix+key, true)
	c, err := p.Store.Claim(ctx, p.prefix+key, lease)
	c.Key = key
	return c, err
}

func (p *prefixed) Renew(ctx context.Context, c middleware.Claim, lease time.Duration) error {
	c.Key = p.prefix + c.Key
	return p.Store.Renew(ctx, c, lease)
}

func (p *prefixed) Done(ctx context.Context, c middleware.Claim, keep time.Duration) error {
	c.Key = p.prefix + c.Key
	return p.Store.Done(ctx, c, keep)
}

func (p *prefixed) Release(ctx context.Context, c middleware.Claim) error {
	c.Key = p.prefix + c.Key
	return p.Store.Release(ctx, c)
}

// forgetful loses the answer to the next call and breaks its connection, once the server has carried
// the call out.
type forgetful struct{ armed atomic.Bool }

func (f *forgetful) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return forgetfulConn{conn, f}, err
}

type forgetfulConn struct {
	net.Conn

	f *forgetful
}

func (c forgetfulConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.f.armed.CompareAndSwap(true, false) {
		return 0, errors.Join(io.EOF, c.Close())
	}
	return n, err
}

func TestStore_repeatedCallIsIdempotent(t *testing.T) {
	server := miniredis.RunT(t)
	f := &forgetful{}
	client := redis.NewClient(&redis.Options{
		Addr: server.Addr(), Dialer: f.dial, MaxRetries: 1, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer client.Close()
	s, err := redisstore.New(client)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"scripts become known", "k"} { // an unknown script would use up the repetition
		f.armed.Store(key == "k")
		c, err := s.Claim(t.Context(), key, time.Minute)
		if err != nil || c.State != middleware.Claimed {
			t.Fatalf("claim: %+v, %v; want claimed", c, err)
		}
		f.armed.Store(key == "k")
		if err := s.Renew(t.Context(), c, time.Minute); err != nil {
			t.Errorf("renew: %v", err)
		}
		f.armed.Store(key == "k")
		if err := s.Done(t.Context(), c, time.Minute); err != nil {
			t.Errorf("done: %v", err)
		}
		c, err = s.Claim(t.Context(), key+"2", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		f.armed.Store(key == "k")
		if err := s.Release(t.Context(), c); err != nil {
			t.Errorf("release: %v", err)
		}
		if f.armed.Load() {
			t.Error("no answer was lost; the test shows nothing")
		}
	}
}

func TestStore_releasesAFailedClaim(t *testing.T) {
	server := miniredis.RunT(t)
	f := &forgetful{}
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: f.dial, MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	s, err := redisstore.New(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), "scripts become known", time.Minute); err != nil {
		t.Fatal(err)
	}
	f.armed.Store(true)
	c, err := s.Claim(t.Context(), "k", time.Minute)
	if err == nil || !server.Exists("k") {
		t.Fatalf("claim: %+v, %v; want an error, and the key taken", c, err)
	}
	if err := s.Release(t.Context(), c); err != nil || server.Exists("k") {
		t.Errorf("release: %v; the key is still there: %t", err, server.Exists("k"))
	}
}

func TestStore_obeysTheDeadlineIfRedisHangs(t *testing.T) {
	server := miniredis.RunT(t)
	proxy := testenv.NewProxy(t, server.Addr())
	s := open(t, "redis://"+proxy.Addr()+"?read_timeout=1h")
	if _, err := s.Claim(t.Context(), "k1", time.Minute); err != nil {
		t.Fatal(err)
	}
	proxy.Stall()
	defer proxy.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Claim(ctx, "k2", time.Minute); err == nil {
		t.Error("a claim succeeded on a hanging server")
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("a claim with 50 ms took %s", took)
	}
}

func TestNew_rejectsClientsThatIgnoreDeadlines(t *testing.T) {
	for _, client := range []interface {
		redis.Scripter
		io.Closer
	}{
		redis.NewClient(&redis.Options{}),
		redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}}),
		redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}}),
	} {
		if _, err := redisstore.New(client); err == nil || !strings.Contains(err.Error(), "ContextTimeoutEnabled") {
			t.Errorf("New(%T): %v; want an error with the fix", client, err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	client := redis.NewClient(&redis.Options{ContextTimeoutEnabled: true})
	defer client.Close()
	if _, err := redisstore.New(client); err != nil {
		t.Errorf("New: %v", err)
	}
}

func TestOpen_errorsHaveNoPassword(t *testing.T) {
	for _, tc := range []struct{ url, want string }{
		{"redis://user:hunter2@localhost:port/0", "can't be parsed"},
		{"redis://user:hun/ter2@localhost/0", "percent-encoded"},
		{"redis://user:hun#ter2@localhost/0", "can't be parsed"},
		{"redis://:12?hunter2@localhost/0", "percent-encoded"},
		{"redis://user:%zzhunter2@localhost/0", "can't be parsed"},
		{"http://user:hunter2@localhost/0", "scheme"},
		{"localhost:6379", "scheme"},
		{"", "scheme"},
		{"redis://user:hunter2@localhost/shop", "number of a database"},
		{"redis://user:hunter2@localhost/0?dial_timeuot=5s", "option dial_timeuot"},
		{"redis://user:hunter2@localhost/0?pool_size=many", "option pool_size"},
		{"redis://user:hunter2@localhost/0?read_timeout=soon", "option read_timeout"},
	} {
		_, err := redisstore.Open(tc.url)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Open(%q): %v; want %q in it", tc.url, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hun") || strings.Contains(err.Error(), "ter2")) {
			t.Errorf("Open(%q): the error shows the password: %v", tc.url, err)
		}
	}
}

func TestStore_errorsHaveNoPassword(t *testing.T) {
	server := miniredis.RunT(t)
	server.RequireAuth("another")
	for _, addr := range []string{server.Addr(), "127.0.0.1:1"} {
		s := open(t, fmt.Sprintf("redis://user:%s@%s/0", url.QueryEscape("hunter2"), addr))
		_, err := s.Claim(t.Context(), "k", time.Minute)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("claim at %s: %v; want an error without the password", addr, err)
		}
	}
}

func TestClose_twice(t *testing.T) {
	s, err := redisstore.Open("redis://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

func TestStore_markSizeIsAsDocumented(t *testing.T) {
	opts, err := redis.ParseURL(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer client.Close()
	s, key := open(t, testenv.Redis(t)), unique()+"leat:dedup:shop.book-payment:id:12:/shop/orders:"+bus.NewID()
	defer forget(t, key)
	c, err := s.Claim(t.Context(), key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Done(t.Context(), c, time.Minute); err != nil {
		t.Fatal(err)
	}
	used, err := client.MemoryUsage(t.Context(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a mark with a key of %d bytes takes %d bytes", len(key), used)
	if used > 400 {
		t.Errorf("a mark takes %d bytes", used)
	}
}

func BenchmarkClaimAndDone(b *testing.B) {
	for _, parallel := range []int{1, 5, 32} {
		b.Run(fmt.Sprintf("goroutines=%d", 2*parallel), func(b *testing.B) {
			s, p := open(b, testenv.Redis(b)), unique()
			var n atomic.Int64
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c, err := s.Claim(b.Context(), fmt.Sprint(p, n.Add(1)), time.Minute)
					if err == nil {
						err = s.Done(b.Context(), c, time.Minute)
					}
					if err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			keys := make([]string, n.Load())
			for i := range keys {
				keys[i] = fmt.Sprint(p, i+1)
			}
			forget(b, keys...)
		})
	}
}
