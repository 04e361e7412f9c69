// Package redisstore records handled messages in Redis, so that all processes of a service share the
// records. It needs Redis 5 or a compatible server (Valkey, KeyDB, Dragonfly) that allows scripts.
package redisstore

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/leatbus/leat/middleware"
)

// A Store is a [middleware.Store] on Redis. Each call is one round trip. The mark of a done message is one
// key of about 200 bytes in Redis' memory. Configure Redis with the maxmemory-policy noeviction: if a key is
// evicted, duplicates of its message are handled again. Its methods may be called concurrently.
type Store struct {
	client  redis.Scripter
	scripts scripts
	owned   io.Closer // nil if the caller owns the client
}

// New returns a store on a client, which the caller owns: a *redis.Client, a *redis.ClusterClient
// (each call uses one key), a *redis.Ring or an AutoPipeliner. It returns an error if the client ignores the
// deadlines of contexts, since a Redis that hangs would block every handler for the client's own timeout.
func New(client redis.Scripter) (*Store, error) {
	if !heedsDeadlines(client) {
		return nil, fmt.Errorf("redisstore: the %T does not heed the deadlines of contexts; "+
			"set ContextTimeoutEnabled in its options", client)
	}
	return &Store{client: client, scripts: newScripts()}, nil
}

func heedsDeadlines(client redis.Scripter) bool {
	switch c := client.(type) {
	case interface{ Options() *redis.Options }:
		return c.Options().ContextTimeoutEnabled
	case interface{ Options() *redis.ClusterOptions }:
		return c.Options().ContextTimeoutEnabled
	case interface{ Options() *redis.RingOptions }:
		return c.Options().ContextTimeoutEnabled
	default:
		return true // unknown
	}
}

// Close closes the client if the store was returned by [Open]. It may be called more than once.
func (s *Store) Close() error {
	if s.owned == nil {
		return nil
	}
	owned := s.owned
	s.owned = nil
	if err := owned.Close(); err != nil {
		return fmt.Errorf("redisstore: close: %w", err)
	}
	return nil
}

// Claim implements [middleware.Store].
func (s *Store) Claim(ctx context.Context, key string, lease time.Duration) (middleware.Claim, error) {
	c := middleware.Claim{Key: key, Token: newToken()}
	answer, err := s.scripts.claim.Run(ctx, s.client, []string{key}, c.Token, millis(lease)).Int64()
	switch {
	case err != nil:
		return c, fmt.Errorf("redisstore: claim: %w", err)
	case answer == answerClaimed:
		c.State = middleware.Claimed
		return c, nil
	case answer == answerDone:
		return middleware.Claim{Key: key, State: middleware.Done}, nil
	case answer < answerDone:
		return c, fmt.Errorf("redisstore: claim: the script returned %d; look for another program that writes %q", answer, key)
	default:
		left := time.Duration(min(answer, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
		return middleware.Claim{Key: key, State: middleware.InProgress, Left: left}, nil
	}
}

// Renew implements [middleware.Store].
func (s *Store) Renew(ctx context.Context, c middleware.Claim, lease time.Duration) error {
	return s.run(ctx, "renew", s.scripts.renew, c.Key, c.Token, millis(lease))
}

// Done implements [middleware.Store].
func (s *Store) Done(ctx context.Context, c middleware.Claim, keep time.Duration) error {
	return s.run(ctx, "done", s.scripts.done, c.Key, c.Token, millis(keep))
}

// Release implements [middleware.Store].
func (s *Store) Release(ctx context.Context, c middleware.Claim) error {
	return s.run(ctx, "release", s.scripts.release, c.Key, c.Token)
}

func (s *Store) run(ctx context.Context, op string, script *redis.Script, key string, args ...any) error {
	answer, err := script.Run(ctx, s.client, []string{key}, args...).Int64()
	switch {
	case err != nil:
		return fmt.Errorf("redisstore: %s: %w", op, err)
	case answer == answerLost:
		return fmt.Errorf("redisstore: %s: %w", op, middleware.ErrClaimLost)
	default:
		return nil
	}
}

// newToken returns 64 random bits. They only need to differ among the claims of one key.
func newToken() string { return strconv.FormatUint(rand.Uint64(), 36) }

func millis(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
