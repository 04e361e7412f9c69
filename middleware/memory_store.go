package middleware

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync"
	"time"
)

// DefaultMemoryCapacity is the default for the largest number of marks in a [MemoryStore].
const DefaultMemoryCapacity = 4 << 20

// memoryShards is the number of shards, each with its own mutex, so that goroutines rarely wait for each other.
const memoryShards = 16

// A MemoryStore is a [LocalStore], for services with one process, for tests and for the memory transport. It keeps a mark for
// at least the requested time and at most twice that. If more messages than half its capacity are done in that time, it drops
// older marks first, and always has the latest half. It stores 96-bit hashes of keys, with seeds of the process. It starts no
// goroutine and need not be closed.
type MemoryStore struct {
	seeds  [2]maphash.Seed
	shards [memoryShards]shard
}

// NewMemoryStore returns an empty store for at most capacity marks. 0 means [DefaultMemoryCapacity]; less than 1,000 counts as
// 1,000. A full store takes up to 15 bytes per mark.
func NewMemoryStore(capacity int) *MemoryStore {
	capacity = cmp.Or(capacity, DefaultMemoryCapacity)
	s := &MemoryStore{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	for i := range s.shards {
		s.shards[i].claims = make(map[hash]string)
		s.shards[i].capacity = max(capacity, 1000) / memoryShards / 2
	}
	return s
}

// Local implements [LocalStore].
func (s *MemoryStore) Local() {}

// Claim implements [Store]. The claim has no lease: it ends with the process. It returns an error only if ctx is done.
func (s *MemoryStore) Claim(ctx context.Context, key string, _ time.Duration) (Claim, error) {
	if err := ctx.Err(); err != nil {
		return Claim{}, fmt.Errorf("middleware: memory store: claim: %w", err)
	}
	h, sh := s.find(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.claim(key, h), nil
}

// Renew implements [Store].
func (s *MemoryStore) Renew(_ context.Context, c Claim, _ time.Duration) error {
	return s.change("renew", c, func(sh *shard, h hash) { sh.claims[h] = c.Token })
}

// Done implements [Store].
func (s *MemoryStore) Done(_ context.Context, c Claim, keep time.Duration) error {
	return s.change("done", c, func(sh *shard, h hash) {
		delete(sh.claims, h)
		sh.mark(h, keep)
	})
}

// Release implements [Store].
func (s *MemoryStore) Release(_ context.Context, c Claim) error {
	return s.change("release", c, func(sh *shard, h hash) { delete(sh.claims, h) })
}

// change calls do with the claim's shard, which it locks, if the claim still owns its key.
func (s *MemoryStore) change(what string, c Claim, do func(*shard, hash)) error {
	h, sh := s.find(c.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if !sh.owns(c, h) {
		return fmt.Errorf("middleware: memory store: %s: %w", what, ErrClaimLost)
	}
	do(sh, h)
	return nil
}

func (s *MemoryStore) find(key string) (hash, *shard) {
	a, b := maphash.String(s.seeds[0], key), maphash.String(s.seeds[1], key)
	return hash{high: max(a, 1), low: uint32(b & 0xffffffff)}, &s.shards[(b>>32)%memoryShards]
}

// shard has a part of the keys. Its marks are in two generations. New marks go to the young one. When that is full or its time
// is over, it becomes the old one, and the former old one is dropped. So no mark needs its own time.
type shard struct {
	mu       sync.Mutex
	claims   map[hash]string // the token of each key in progress
	tokens   uint64          // number of tokens so far
	young    *set
	old      *set
	rotated  time.Time     // when young was begun
	keep     time.Duration // the longest requested time of a mark
	capacity int           // of one generation
}

func (s *shard) claim(key string, h hash) Claim {
	if _, taken := s.claims[h]; taken {
		return Claim{Key: key, State: InProgress}
	}
	if s.marked(h) {
		return Claim{Key: key, State: Done}
	}
	s.tokens++
	token := strconv.FormatUint(s.tokens, 36)
	s.claims[h] = token
	return Claim{Key: key, Token: token, State: Claimed}
}

// owns reports whether the key is claimed by this claim, or free.
func (s *shard) owns(c Claim, h hash) bool {
	if token, taken := s.claims[h]; taken {
		return token == c.Token
	}
	return !s.marked(h)
}

func (s *shard) marked(h hash) bool {
	if s.young == nil {
		return false
	}
	s.expire(time.Now())
	return s.young.has(h) || s.old.has(h)
}

func (s *shard) mark(h hash, keep time.Duration) {
	now := time.Now()
	s.expire(now)
	s.keep = max(s.keep, keep)
	if s.young == nil || s.young.full() {
		s.rotate(now)
	}
	s.young.add(h)
}

func (s *shard) expire(now time.Time) {
	age := now.Sub(s.rotated)
	if s.young == nil || age < s.keep {
		return
	}
	s.rotate(now)
	if age >= 2*s.keep { // no call for so long that the young marks have expired, too
		s.old = nil
	}
}

func (s *shard) rotate(now time.Time) {
	s.old, s.young, s.rotated = s.young, newSet(s.capacity), now
}
