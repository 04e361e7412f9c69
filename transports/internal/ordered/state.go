package ordered

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"
)

// A State is the content of the log: its keys, their messages that are away, and where others are parked. A process that takes over
// reads it from the log, and a machine applies each record that it writes, so both have the same state. The log has a key as long
// as messages of the key are away or parked. A State is not safe for concurrent use.
type State struct {
	epoch  uint64
	owner  string // the session whose claim of the epoch was the first
	last   uint64 // the number of the epoch's last record
	intact bool   // a whole snapshot was read, and nothing after it is missing; else the log was empty or deleted
	lost   bool   // the log was deleted, so parked messages count without a record
	keys   map[string]*keyState
	bytes  int                // of the names of keys and heads
	heads  map[string]string  // name of a message that is away → key
	done   []string           // heads that are done, the last at the end
	isDone map[string]bool    // the same
	pairs  map[int]*pairState // nil: nothing was ever parked there
	inPair [maxPairs + 1]int  // keys that are parked there

	parts   []*Record // of a snapshot that is not complete
	claimed bool      // this session has claimed before
}

// A keyState is the state of a key.
type keyState struct {
	away  []*away
	pair  int    // of parked queues; 0: nothing is parked
	since uint64 // the epoch in which the key began to be parked
}

// NewState returns the state of an empty log.
func NewState() *State {
	return &State{
		keys: make(map[string]*keyState), heads: make(map[string]string), isDone: make(map[string]bool),
		pairs: make(map[int]*pairState),
	}
}

// claim returns a record with which a session claims the next epoch. The first claim of a session is always refused,
// because it follows an impossible epoch. If the log was deleted, epochs go on from the Unix time in milliseconds, so that they
// grow in that case too.
func (s *State) claim(writer string, met uint64, now time.Time) *Record {
	r := &Record{Kind: kindEpoch, Epoch: maxEpoch, Writer: writer, After: maxEpoch}
	if s.claimed {
		r.Epoch, r.After = max(s.epoch, met)+1, s.epoch
		if s.epoch == 0 {
			r.Epoch = max(r.Epoch, uint64(max(now.UnixMilli(), 1)))
		}
	}
	s.claimed = true
	return r
}

// pairCount returns the highest pair of parked queues in the log.
func (s *State) pairCount() (n int) {
	for pair := range s.pairs {
		n = max(n, pair)
	}
	for pair, keys := range s.inPair {
		if keys > 0 {
			n = max(n, pair)
		}
	}
	return n
}

// errTooManyKeys is returned if the log has more keys than a process should keep in memory.
var errTooManyKeys = errors.New("ordered: the log has too many keys")

// Apply adds a record of the log, in the log's order. A record of an earlier epoch has no effect: its writer did not
// lead any more when it wrote the record, or stopped leading before the log had it.
func (s *State) Apply(r *Record) error {
	if r.Epoch < s.epoch {
		return nil
	}
	if r.Kind == kindEpoch {
		if r.Epoch > s.epoch && r.After == s.epoch {
			s.enter(r.Epoch, r.Writer)
		}
		return nil
	}
	if r.Epoch > s.epoch { // its claim was deleted, and with it perhaps the state on which the record rests
		s.enter(r.Epoch, "")
		s.intact = false
	}
	if r.N <= s.last {
		return nil
	}
	s.last = r.N
	if len(s.keys) >= maxKeys && s.keys[string(r.Key)] == nil && r.Kind != kindSnapshot {
		return errTooManyKeys
	}
	key := string(r.Key)
	switch r.Kind {
	case kindSnapshot:
		return s.snapshotPart(r)
	case kindBlock:
		s.remove(key, r.Head)
		s.block(key, r.Away)
	case kindDone:
		s.remove(key, r.Head)
	case kindPark:
		s.park(key, r.Pair, cmp.Or(r.Since, r.Epoch))
	case kindOpen:
		s.park(key, 0, 0)
	case kindSwept:
		s.lost = s.lost && !s.intact // else its writer knew of keys that are not known here
	case kindTurn:
		p := s.pair(r.Pair)
		p.Side = r.Side
		p.Void[r.Side.other()] = r.Turn
	}
	s.forget(key)
	return nil
}

func (s *State) enter(epoch uint64, owner string) {
	s.epoch, s.owner, s.last, s.parts = epoch, owner, 0, nil
}

func (s *State) key(key string) *keyState {
	k := s.keys[key]
	if k == nil {
		k = new(keyState)
		s.keys[key] = k
		s.bytes += len(key)
	}
	return k
}

func (s *State) block(key string, a *away) {
	k := s.key(key)
	if s.heads[a.Head] != "" || len(k.away) >= maxAway {
		return
	}
	k.away = append(k.away, a)
	s.heads[a.Head] = key
	s.bytes += len(a.Head)
}

// remove records that a head is done.
func (s *State) remove(key, head string) {
	k := s.keys[key]
	if head == "" {
		return
	}
	if !s.isDone[head] {
		s.isDone[head] = true
		s.done = append(s.done, head)
		if len(s.done) > doneHeads {
			delete(s.isDone, s.done[0])
			s.done = s.done[1:]
		}
	}
	if k == nil || s.heads[head] != key {
		return
	}
	k.away = slices.DeleteFunc(k.away, func(a *away) bool { return a.Head == head })
	delete(s.heads, head)
	s.bytes -= len(head)
}

func (s *State) park(key string, pair int, since uint64) {
	k := s.key(key)
	if k.pair == pair {
		k.since = min(k.since, since) // parked again: it still counts since the first time
		return
	}
	s.inPair[k.pair]--
	s.inPair[pair]++
	k.pair, k.since = pair, since
	if pair != 0 {
		s.pair(pair)
	}
}

// forget removes a key of which nothing is away or parked.
func (s *State) forget(key string) {
	if k := s.keys[key]; k != nil && len(k.away) == 0 && k.pair == 0 {
		delete(s.keys, key)
		s.bytes -= len(key)
	}
}

func (s *State) pair(pair int) *pairState {
	p := s.pairs[pair]
	if p == nil {
		p = new(pairState)
		s.pairs[pair] = p
	}
	return p
}

// blocked reports whether a message of the key is away.
func (s *State) blocked(key string) bool {
	k := s.keys[key]
	return k != nil && len(k.away) > 0
}

// pairOf returns the pair of parked queues in which the key is parked, or 0.
func (s *State) pairOf(key string) int {
	if k := s.keys[key]; k != nil {
		return k.pair
	}
	return 0
}

// isAway reports whether a redelivered message is the original of a copy that is away. The original is not needed any more.
func (s *State) isAway(msg *Message) bool {
	k := s.keys[msg.Key]
	return msg.Redelivered && msg.Print != (Print{}) && msg.Head == "" && k != nil &&
		slices.ContainsFunc(k.away, func(a *away) bool { return a.logged && a.Digest == msg.Print })
}

// find returns the message that is away under this name, and its key.
func (s *State) find(head string) (key string, a *away) {
	key, found := s.heads[head]
	if !found {
		return "", nil
	}
	for _, a = range s.keys[key].away {
		if a.Head == head {
			break
		}
	}
	return key, a
}

// snapshotPart collects the parts of a snapshot. The last one of a whole snapshot replaces everything; half of one
// has no effect, because what it was made from is still in the log before it.
func (s *State) snapshotPart(r *Record) error {
	if r.Part != len(s.parts) || r.Part > 0 && r.Parts != s.parts[0].Parts {
		s.parts = nil
		if r.Part != 0 {
			return nil
		}
	}
	s.parts = append(s.parts, r)
	if len(s.parts) < r.Parts {
		return nil
	}
	fresh := NewState()
	fresh.epoch, fresh.owner, fresh.last, fresh.claimed, fresh.intact = s.epoch, s.owner, s.last, s.claimed, true
	fresh.lost = s.parts[0].Lost
	for _, part := range s.parts {
		for i, p := range part.Pairs {
			fresh.pairs[i+1] = &p
		}
		for _, head := range part.Done {
			fresh.remove("", head)
		}
		for _, k := range part.Keys {
			if len(fresh.keys) >= maxKeys {
				return errTooManyKeys
			}
			for _, a := range k.Away {
				fresh.block(string(k.Key), a)
			}
			fresh.park(string(k.Key), k.Pair, k.Since)
			fresh.forget(string(k.Key))
		}
	}
	*s = *fresh
	return nil
}

// Snapshot returns records that have the whole state. There is at least one. If the group does not park, Snapshot first releases the
// keys that wait for poisoned messages. If a part of the log was deleted, it releases all keys: what one waits for may have returned.
func (s *State) Snapshot(park bool) []*Record {
	if !park || !s.intact {
		s.release(!s.intact)
	}
	s.lost, s.intact = s.lost || !s.intact, true
	keys := slices.Sorted(maps.Keys(s.keys))
	parts := max(1, (len(keys)+keysPerPart-1)/keysPerPart)
	records := make([]*Record, parts)
	for i := range records {
		s.last++
		r := &Record{Kind: kindSnapshot, Epoch: s.epoch, N: s.last, Part: i, Parts: parts}
		for _, key := range keys[i*keysPerPart : min((i+1)*keysPerPart, len(keys))] {
			k := s.keys[key]
			r.Keys = append(r.Keys, keyRecord{Key: keyText(key), Away: k.away, Pair: k.pair, Since: k.since})
		}
		records[i] = r
	}
	records[0].Done, records[0].Lost = slices.Clone(s.done), s.lost
	for pair := 1; pair <= s.pairCount(); pair++ {
		records[0].Pairs = append(records[0].Pairs, *s.pair(pair))
	}
	return records
}

// release releases the keys that wait for poisoned messages, or, with all, for any message.
func (s *State) release(all bool) {
	for key, k := range s.keys {
		k.away = slices.DeleteFunc(k.away, func(a *away) bool {
			if all || a.Poison {
				delete(s.heads, a.Head)
				s.bytes -= len(a.Head)
			}
			return all || a.Poison
		})
		s.forget(key)
	}
}

// roomiest returns the pair of parked queues with the fewest keys.
func (s *State) roomiest(pairs int) int {
	return slices.MinFunc(seq(pairs), func(a, b int) int { return cmp.Or(cmp.Compare(s.inPair[a], s.inPair[b]), cmp.Compare(a, b)) })
}

func seq(n int) []int {
	numbers := make([]int, n)
	for i := range numbers {
		numbers[i] = i + 1
	}
	return numbers
}
