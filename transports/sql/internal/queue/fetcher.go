package queue

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// fetcher is the goroutine that claims messages from the database.
type fetcher struct {
	*receiver
	prefetch   int             // how many to take beyond the calls that wait
	fetched    time.Time       // when the last were taken
	took       time.Time       // when the last were taken; unlike fetched never zero
	number     int             // how many they were
	before     int64           // how many deliveries were finished then
	starved    bool            // workers waited for the last one, and had handled most of what the one before got
	full       bool            // the last claim got all it asked for
	size       int             // bytes of a message of the last claim that got some, on average
	seen       uint64          // the hints before the last claim
	empty      bool            // it found less than it asked for
	wait       backoff.Backoff // until the database is asked again without a hint
	nextPoll   time.Time
	sure       bool // everything taken is known
	doubts     doubts
	low        lowest
	lows       *keyLows
	rounds     keyRounds
	due        time.Time // when a delayed message is due; zero for none
	keyDue     time.Time // when a message is due that holds back its key queue; zero for none
	pollDue    time.Time // when to look for delayed messages of other processes
	reconciler reconciler
}

const (
	// keepUp is the time in which handlers must have worked off a fetch for the next to be larger,
	// fallBehind the one after which it is smaller, and giveUp the one after which a buffer from
	// which nobody takes goes back to the group.
	keepUp     = 50 * time.Millisecond
	fallBehind = 200 * time.Millisecond
	giveUp     = 300 * time.Millisecond

	// unknownSize is the size of messages for which the first claim on MySQL is prepared, in bytes.
	unknownSize = 1 << 20
)

func newFetcher(f *receiver) *fetcher {
	size := 0
	if f.core.Name == sqlconfig.MySQL {
		size = unknownSize
	}
	return &fetcher{receiver: f, sure: true, size: size, lows: &keyLows{DB: f.core.DB}, rounds: keyRounds{walk: newKeyWalk()}, reconciler: newReconciler(f.core.groups, f.group)}
}

// start starts the goroutines that claim messages and write how they were settled.
func (f *receiver) start() {
	f.fetching.Go(newFetcher(f).run)
	f.settlements.running.Go(f.settlements.run)
}

func (f *fetcher) run() {
	defer f.leave()
	for f.ctx.Err() == nil {
		want := f.demand()
		if want == 0 {
			f.rest()
			continue
		}
		if !f.worthwhile() {
			f.pause()
			continue
		}
		if err := f.fetch(want); err != nil {
			f.trouble(err)
		}
	}
}

// leave gives back the messages of the last claim, if its answer was lost.
func (f *fetcher) leave() {
	ctx, cancel := context.WithTimeout(f.talking, database.StatementTimeout)
	defer cancel()
	if err := f.settleDoubts(ctx); err != nil && f.talking.Err() == nil {
		f.core.Config.Logger.Warn("leat: sql: messages not given back", "group", f.group.name, "error", err)
	}
}

// demand returns how many messages to claim now: as many as calls of Next wait, plus as many as are handled in about the time of
// one fetch.
func (f *fetcher) demand() int {
	if f.bundle > 0 {
		if len(f.buffer) > 0 || f.waiting.Load() == 0 {
			return 0
		}
		return min(f.bundle, f.ofLastSize())
	}
	heldBack := len(f.buffer)
	between := int(f.pushed.Load()-f.handed.Load()) - heldBack // out of the buffer, and its caller still counts as waiting
	want := max(int(f.waiting.Load())-max(between, 0), 0)
	if f.group.order != driver.OrderedStrictly {
		f.adapt(heldBack)
		want += f.prefetch
	} else if f.settlements.out() > 0 {
		return 0
	}
	if heldBack*2 > want || want == 0 || heldBack > 0 && f.room() <= 0 {
		return 0
	}
	return max(min(want, f.cap(), f.ofLastSize()), heldBack+1) - heldBack
}

// ofLastSize returns how many messages there is room for if they are as large as those of the last claim, and one more. MySQL reads
// the payloads of all messages that a claim asks for, to know their sizes.
func (f *fetcher) ofLastSize() int {
	return f.core.Config.PrefetchBytes/max(f.size, 1) + 1
}

// room returns how many bytes the buffer may take beyond those it has.
func (f *fetcher) room() int { return f.core.Config.PrefetchBytes - int(f.bytes.Load()) }

// adapt changes the prefetch by how long the messages of the last fetch lasted. It is called when more than half of them are taken,
// but counts only handled ones, because workers may take many and finish none.
func (f *fetcher) adapt(heldBack int) {
	if f.fetched.IsZero() || heldBack*2 > f.prefetch {
		return
	}
	lasted := time.Since(f.fetched)
	handled := int(f.settlements.finished.Load() - f.before)
	switch {
	case lasted > fallBehind:
		f.prefetch /= 2
	case lasted < keepUp && f.full && (handled > 0 && 2*handled >= f.number || f.starved):
		f.prefetch = min(max(2*f.prefetch, 2*int(f.waiting.Load()), 4), f.core.Config.Prefetch)
	case lasted < keepUp:
		return // too early to tell
	}
	f.fetched = time.Time{}
}

// worthwhile reports whether a claim may find messages: the last one did, something has happened since, or it is time to poll.
func (f *fetcher) worthwhile() bool {
	now := time.Now()
	if local := f.settlements.dueAt.Swap(0); local != 0 {
		f.dueIn(time.Duration(local - now.UnixNano()))
	}
	return !f.empty || f.doubts.due(now) || f.hints.Load() != f.seen || !now.Before(f.nextPoll) || f.isDue(now) || f.isKeyDue(now) || f.isWalkDue(now)
}

func (f *fetcher) isDue(now time.Time) bool {
	return !f.due.IsZero() && !now.Before(f.due)
}

// isKeyDue reports whether a message that holds back its key queue is due.
func (f *fetcher) isKeyDue(now time.Time) bool {
	return !f.keyDue.IsZero() && !now.Before(f.keyDue)
}

// isWalkDue reports whether it is time for a walk over the key queues that claims have left out.
func (f *fetcher) isWalkDue(now time.Time) bool {
	due := f.rounds.walkDue()
	return !due.IsZero() && !now.Before(due)
}

// rest blocks until messages are needed. If no call of Next takes messages from the buffer, it gives them back to the group, whose
// other consumers may be free.
func (f *fetcher) rest() {
	handed := f.handed.Load()
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case <-f.signal:
	case <-f.ctx.Done():
	case <-timer.C:
		if len(f.buffer) > 0 && handed == f.handed.Load() {
			f.prefetch = 0
			f.giveBackBuffer()
		}
	}
}

// pause blocks until there may be messages.
func (f *fetcher) pause() {
	until := f.nextPoll
	for _, due := range []time.Time{f.due, f.keyDue, f.rounds.walkDue(), f.doubts.again} {
		if !due.IsZero() && due.Before(until) {
			until = due
		}
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-f.signal:
	case <-f.ctx.Done():
	case <-timer.C:
	}
}

// fetch claims up to want messages.
func (f *fetcher) fetch(want int) error {
	ctx, cancel := context.WithTimeout(f.talking, database.StatementTimeout)
	defer cancel()
	hinted := f.hints.Load() != f.seen
	f.seen = f.hints.Load()
	if f.settlements.back.Swap(false) {
		f.low.begin()
	}
	if err := f.settleDoubts(ctx); err != nil {
		return err
	}
	if err := f.promoteDue(ctx, hinted); err != nil {
		return err
	}
	f.settlements.claimLock.Lock()
	defer f.settlements.claimLock.Unlock()
	f.sure = false // until the database has answered
	room := max(f.room(), 1)
	began := time.Now()
	taken, err := f.claim(ctx, want, room)
	if err != nil {
		return err
	}
	total := 0
	for _, m := range taken {
		total += len(m.payload) + len(m.headers)
	}
	room -= total
	if len(taken) > 0 {
		f.size = total / len(taken)
	}
	f.core.Link.Works()
	f.sure = true
	f.claimed(began, want, len(taken))
	f.empty = !f.full && room > 0 && !f.rounds.goOn(time.Now()) && !f.settlements.keys.left()
	f.deliver(taken)
	if len(taken) > 0 || hinted {
		f.wait.Reset()
	}
	f.schedule()
	return nil
}

// claimed records for adapt what a claim has got, before that is put into the buffer.
//
// Often the workers have handled all that the claim before has got, and wait, while this one still goes on. So no claim sees
// its own messages handled, however quick the workers are. starved says that it was so.
func (f *fetcher) claimed(began time.Time, want, got int) {
	now, finished := time.Now(), f.settlements.finished.Load()
	f.full = got >= want
	f.starved = len(f.buffer) == 0 && f.waiting.Load() > 0 && began.Sub(f.took) < keepUp && f.number > 0 && 2*(finished-f.before) >= int64(f.number)
	f.fetched, f.took, f.number, f.before = now, now, got, finished
}

// schedule sets when to poll again without a hint: soon after messages were found, because earlier ids may be committed later, and
// then less and less often.
func (f *fetcher) schedule() {
	wait := min(f.wait.Next(), longestPoll)
	if f.wait.AtLongest() {
		wait = idlePoll/2 + rand.N(idlePoll/2)
	}
	f.nextPoll = time.Now().Add(wait)
}

func (f *fetcher) claim(ctx context.Context, want, room int) ([]record, error) {
	c := claim{
		group: f.group, owner: f.consumer.id, limit: want, bytes: room, singleWorker: f.singleWorker,
	}
	var taken []record
	if f.group.order != driver.OrderedStrictly {
		began := time.Now()
		c.from = f.low.from(began)
		ready, err := f.core.claims.ready(ctx, c)
		if err != nil {
			return nil, err
		}
		f.low.taken(began, c.from, ready, len(ready) < want)
		taken = ready
	}
	if f.group.order == driver.Unordered || len(taken) == want {
		return taken, nil
	}
	if f.group.order == driver.OrderedStrictly {
		want = 1
	}
	c.limit = want - len(taken)
	found, err := f.claimKeys(ctx, keyClaim{claim: c, lows: f.lows, walk: f.rounds.walk, runs: f.bundle > 0})
	if err != nil {
		f.lows.forget()
		f.deliver(taken) // these are known
		return nil, err
	}
	return append(taken, found...), nil
}

// claimKeys claims from the key queues that the receiver's hints name, and from those where the walk continues.
func (f *fetcher) claimKeys(ctx context.Context, c keyClaim) ([]record, error) {
	if err := f.lows.begin(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	c.orphans = began.Sub(f.rounds.orphans) > max(longestPoll, 10*f.rounds.orphan)
	byKey := f.group.order == driver.OrderedByKey
	if !byKey { // there is one queue
		c.queues, c.noWalk = []int64{0}, true
		c.busy = f.lows.slow()
	}
	if byKey {
		if err := f.rounds.open(ctx, f.core.DB); err != nil {
			return nil, err
		}
		c.fresh, c.brief = f.rounds.fresh(began)
		c.queues, c.due = f.settlements.keys.take(began)
		c.busy, c.hints = f.rounds.busy || f.rounds.litter, began.Sub(f.rounds.walked) < walkEvery
		c.noWalk = f.rounds.noWalk(began)
	}
	found, err := f.core.keyQueues.claim(ctx, c)
	if byKey && (err != nil || found.left) {
		f.settlements.keys.restore(c.queues, c.due)
	}
	if err != nil {
		return nil, err
	}
	if c.orphans {
		f.rounds.orphans, f.rounds.orphan = began, found.orphans
	}
	f.lows.took(found.looking)
	if byKey {
		f.rounds.claimed(began, found)
		if found.walked {
			f.rounds.littered(f.lows.walksOver(found.walking))
		}
	}
	f.keyDue = time.Time{}
	for _, head := range found.waiting {
		if byKey {
			f.settlements.keys.wait(head.keyHead, head.at)
		} else if f.keyDue.IsZero() || head.at.Before(f.keyDue) {
			f.keyDue = head.at
		}
	}
	if byKey {
		f.keyDue = f.settlements.keys.next()
	}
	return found.taken, nil
}

// promoteDue makes delayed messages ready. It records those that this process has delayed; for those of other processes it queries
// when messages were published, and from time to time.
func (f *fetcher) promoteDue(ctx context.Context, hinted bool) error {
	now := time.Now()
	if !f.isDue(now) && now.Before(f.pollDue) && !hinted {
		return nil
	}
	if f.isDue(now) {
		f.low.begin()
	}
	f.due = time.Time{}
	wait, ok, err := f.core.claims.promote(ctx, f.group)
	if err != nil {
		return err
	}
	if ok {
		f.dueIn(wait)
	}
	f.pollDue = now.Add(longestPoll / 2)
	return f.reconciler.run(ctx)
}

// dueIn records when a delayed message is due.
func (f *fetcher) dueIn(wait time.Duration) {
	at := time.Now().Add(max(wait, 0))
	if f.due.IsZero() || at.Before(f.due) {
		f.due = at
	}
}

// settleDoubts gives back the messages of a claim whose answer was lost: in the database this receiver owns them, but it does not
// have them.
func (f *fetcher) settleDoubts(ctx context.Context) error {
	now := time.Now()
	if f.sure && !f.doubts.due(now) {
		return nil
	}
	ids, err := f.core.claims.owned(ctx, f.group, f.consumer.id)
	if err != nil {
		return err
	}
	if ids = f.settlements.unknown(ids); len(ids) > 0 {
		err = f.core.claims.put(ctx, f.core.Pool, f.consumer.id, ids, 1)
	}
	if err == nil {
		f.doubts.settled(now, f.sure)
		f.sure = true
	}
	return err
}

// doubts says when to look again for the messages of claims whose answers were lost. A server may carry out the commit of such a
// claim after the connection is lost, and even after the next statement. MySQL 9 does.
type doubts struct {
	again time.Time // zero if no answer was lost so far
	wait  time.Duration
}

const (
	firstDoubt   = time.Second
	longestDoubt = 5 * time.Minute
)

func (d *doubts) due(now time.Time) bool { return !d.again.IsZero() && !now.Before(d.again) }

// settled is called after a look. The waits grow if no other answer was lost meanwhile, and never end.
func (d *doubts) settled(now time.Time, noOther bool) {
	if d.wait = min(2*d.wait, longestDoubt); !noOther {
		d.wait = firstDoubt
	}
	d.again = now.Add(d.wait)
}

// trouble waits before the next try after an error.
func (f *fetcher) trouble(err error) {
	if f.ctx.Err() != nil {
		return
	}
	f.prefetch = 0 // what was too much for a statement timeout is less next time
	f.empty = false
	wait := f.wait.Next()
	if !f.core.Temporary(err) {
		wait = database.LongestBackoff
	}
	if wait > database.LongestBackoff/4 { // a conflict or two with others is nobody's business
		f.core.Config.Logger.Warn("leat: sql: fetch failed", "group", f.group.name, "error", err)
	}
	backoff.Sleep(f.ctx, wait)
}
