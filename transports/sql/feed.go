package sql

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// feed hands out one group's messages. One goroutine takes them from the database into a buffer, one
// carries out how they were settled.
type feed struct {
	transport *Transport
	store     *store
	group     group
	owner     int64 // the consumer that the feed is to the database
	alone     bool  // it has one worker

	buffer   chan *delivery
	waiting  atomic.Int32  // calls of Next that found the buffer empty
	handed   atomic.Int64  // deliveries that left the buffer so far
	pushed   atomic.Int64  // deliveries put into the buffer so far
	finished atomic.Int64  // deliveries settled so far
	hints    atomic.Uint64 // reasons to look for messages so far
	signal   chan struct{} // wakes the fetcher
	back     atomic.Bool   // messages came back to the group
	dueAt    atomic.Int64  // when a message comes again that this feed delayed, in Unix nanoseconds; 0 for none

	settlements settlements
	turn        sync.Mutex // held while messages are taken, and while some are given back
	bundle      int        // for relays: how many messages to take and hand out at once; 0 for one by one
	lanes       laneHints  // for groups that are ordered by key

	ctx      context.Context // ends when the feed closes
	cancel   context.CancelFunc
	talking  context.Context // ends when the feed can wait no more for what it has asked the database
	hangUp   context.CancelFunc
	fetching sync.WaitGroup
	closing  sync.Once
	closeErr error
}

func newFeed(t *Transport, g group, s driver.Subscription, owner int64) *feed {
	f := &feed{
		transport: t,
		store:     t.store,
		group:     g,
		owner:     owner,
		alone:     s.Concurrency == 1,
		buffer:    make(chan *delivery, t.store.cfg.Prefetch+s.Concurrency),
		signal:    make(chan struct{}, 1),
	}
	f.ctx, f.cancel = context.WithCancel(t.ctx)
	f.talking, f.hangUp = context.WithCancel(t.ctx)
	f.settlements.init(f)
	return f
}

func (f *feed) start() {
	f.fetching.Go(newFetcher(f).run)
	f.settlements.running.Go(f.settlements.run)
}

// Next hands out the next message. It takes from the database as many as there are calls of Next
// that wait, and more only while these are handled quickly.
func (f *feed) Next(ctx context.Context) (*driver.Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.ctx.Err() != nil {
		return nil, driver.ErrClosed
	}
	select {
	case d := <-f.buffer:
		return f.hand(d), nil
	default:
	}
	f.waiting.Add(1)
	f.poke()
	select {
	case d := <-f.buffer:
		f.waiting.Add(-1) // before the hand-over: never may more seem to wait than do
		defer f.poke()
		return f.hand(d), nil
	case <-ctx.Done():
		f.waiting.Add(-1)
		return nil, ctx.Err()
	case <-f.ctx.Done():
		f.waiting.Add(-1)
		return nil, driver.ErrClosed
	}
}

func (f *feed) hand(d *delivery) *driver.Delivery {
	f.handed.Add(1)
	if len(f.buffer) == f.cap()/4 {
		f.poke()
	}
	return &d.delivery
}

// delayed notes that a message of the feed comes again then.
func (f *feed) delayed(after time.Duration) {
	at := time.Now().Add(after).UnixNano()
	for {
		known := f.dueAt.Load()
		if known != 0 && known <= at {
			return
		}
		if f.dueAt.CompareAndSwap(known, at) {
			f.poke()
			return
		}
	}
}

func (f *feed) cap() int { return cap(f.buffer) }

// poke lets the fetcher see what is wanted; hint says that there is something to fetch.
func (f *feed) poke() { wake(f.signal) }

func (f *feed) hint() {
	f.hints.Add(1)
	f.poke()
}

// Close stops the feed and gives back what it holds and has not handed out.
func (f *feed) Close(ctx context.Context) error {
	f.closing.Do(func() {
		f.cancel()
		f.transport.waker.remove(f)
		stop := context.AfterFunc(ctx, f.hangUp)
		f.fetching.Wait()
		stop()
		f.hangUp()
		f.giveBackBuffer()
		f.closeErr = f.settlements.flush(ctx)
		if f.closeErr == nil && f.settlements.out() == 0 {
			f.closeErr = f.end(ctx)
		}
	})
	return f.closeErr
}

// end gives back what is out, and ends the lease.
func (f *feed) end(ctx context.Context) error {
	if err := f.settlements.close(ctx); err != nil {
		return fmt.Errorf("sql: close group %q: %w; what it held comes again when its lease has run out", f.group.name, err)
	}
	return f.transport.forget(ctx, f)
}

// giveBackBuffer gives back what is in the buffer. It costs no attempt: nobody has seen it.
func (f *feed) giveBackBuffer() {
	for {
		select {
		case d := <-f.buffer:
			f.handed.Add(1 + int64(len(d.behind)))
			for _, d := range d.behind {
				_ = d.GiveBack(0)
			}
			_ = d.GiveBack(0) // it is settled once, here
		default:
			return
		}
	}
}

// deliver makes deliveries of what was taken and puts them into the buffer, which has room. What the
// feed holds already is left out: a crash of the server has undone the claim, and this one repeats it.
// The caller holds f.turn, so that nothing is on its way back.
func (f *feed) deliver(taken []record) {
	var bundle []*delivery
	for i := range taken {
		d, err := f.newDelivery(&taken[i])
		if err != nil {
			f.store.cfg.Logger.Error("leat: sql: unreadable headers", "group", f.group.name, "id", taken[i].id, "err", err)
		}
		switch {
		case !f.settlements.track(d):
		case f.bundle > 0:
			bundle = append(bundle, d)
		default:
			f.pushed.Add(1)
			f.buffer <- d
		}
	}
	if len(bundle) > 0 {
		bundle[0].behind = bundle[1:]
		f.pushed.Add(int64(len(bundle)))
		f.buffer <- bundle[0]
	}
}

func (f *feed) newDelivery(m *record) (*delivery, error) {
	headers, err := decodeHeaders(m.headers)
	if headers == nil {
		headers = message.Metadata{}
	}
	d := &delivery{feed: f, id: m.id, state: m.state}
	d.history = driver.TakeHistory(headers)
	d.headers = m.headers
	if m.state == stateLaneHead {
		d.lane = laneOf(&message.Message{Metadata: headers})
	}
	d.delivery = driver.Delivery{
		Message:   newMessage(m.uuid, headers, m.payload),
		Topic:     m.topic,
		Group:     f.group.name,
		Attempt:   m.attempt,
		FirstSeen: time.UnixMicro(m.firstAt),
		Settler:   d,

		History: d.history,
	}
	return d, err
}

// fetcher is the goroutine that takes messages from the database.
type fetcher struct {
	*feed
	prefetch int       // how many to take beyond the calls that wait
	fetched  time.Time // when the last were taken
	took     time.Time // when the last were taken; unlike fetched never zero
	number   int       // how many they were
	before   int64     // how many deliveries were finished then
	during   int64     // how many of them since the fetch before
	full     bool      // the last claim got all it asked for
	seen     uint64    // the hints before the last claim
	empty    bool      // it found less than it asked for
	wait     backoff   // until the database is asked again without a hint
	nextPoll time.Time
	sure     bool // everything taken is known
	low      lowest
	walk     laneWalk // where the last walk over the lanes ended
	rounds   laneRounds
	due      time.Time // when a delayed message is due; zero for none
	laneDue  time.Time // when a message is due that holds back its lane; zero for none
	lookDue  time.Time // when to look for delayed messages of other processes
	tidier   tidier
}

const (
	// keepUp is the time in which handlers must have worked off a fetch for the next to be larger,
	// fallBehind the one after which it is smaller, and giveUp the one after which a buffer from
	// which nobody takes goes back to the group.
	keepUp     = 50 * time.Millisecond
	fallBehind = 200 * time.Millisecond
	giveUp     = 300 * time.Millisecond
	// longestPoll is the longest time between two looks of a feed that was woken, and of the waker for the
	// groups of all feeds. A feed that has found nothing for some looks leaves it to the waker, and looks only
	// every idlePoll.
	longestPoll = time.Second
	idlePoll    = 30 * time.Second
)

func newFetcher(f *feed) *fetcher {
	return &fetcher{feed: f, sure: true, walk: newLaneWalk(), tidier: newTidier()}
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

// leave is the last word with the database: what a claim took whose answer was lost goes back.
func (f *fetcher) leave() {
	ctx, cancel := context.WithTimeout(f.talking, statementTimeout)
	defer cancel()
	if err := f.settleDoubts(ctx); err != nil && f.talking.Err() == nil {
		f.store.cfg.Logger.Warn("leat: sql: close; some messages come again with an attempt counted", "group", f.group.name, "err", err)
	}
}

// demand is how many messages to take now: as many as are waited for, and beyond them as many as
// were handled in about the time of one fetch.
func (f *fetcher) demand() int {
	if f.bundle > 0 {
		if len(f.buffer) > 0 || f.waiting.Load() == 0 {
			return 0
		}
		return f.bundle
	}
	held := len(f.buffer)
	between := int(f.pushed.Load()-f.handed.Load()) - held // out of the buffer, and its caller still counts as waiting
	want := max(int(f.waiting.Load())-max(between, 0), 0)
	if f.group.order != driver.OrderedStrictly {
		f.adapt(held, want)
		want += f.prefetch
	} else if f.settlements.out() > 0 {
		return 0
	}
	if held*2 > want || want == 0 {
		return 0
	}
	return min(want, f.cap()) - held
}

// adapt learns from how long the last fetch lasted. It is more than halfway through it that it is
// asked; but only what was handled counts, as workers may take many and finish none.
func (f *fetcher) adapt(held, want int) {
	if f.fetched.IsZero() || held*2 > f.prefetch {
		return
	}
	lasted := time.Since(f.fetched)
	handled := int(f.finished.Load() - f.before)
	switch {
	case lasted > fallBehind:
		f.prefetch /= 2
	case lasted < keepUp && f.full && (handled > 0 && 2*handled >= f.number || f.starving(held, want)):
		f.prefetch = min(max(2*f.prefetch, 2*int(f.waiting.Load()), 4), f.store.cfg.Prefetch)
	case lasted < keepUp:
		return // too early to tell
	}
	f.fetched = time.Time{}
}

// starving reports whether workers wait although messages were handled quickly during the last fetch. Then they
// stand in two halves, one of which handles while the other's messages are fetched, so that no fetch ever sees any
// of its own messages handled.
func (f *fetcher) starving(held, want int) bool {
	return held == 0 && want > 0 && 2*f.during >= int64(f.number)
}

// worthwhile reports whether a claim may find something: the last one did, something happened since,
// or it is time to look.
func (f *fetcher) worthwhile() bool {
	now := time.Now()
	if local := f.dueAt.Swap(0); local != 0 {
		f.dueIn(time.Duration(local - now.UnixNano()))
	}
	return !f.empty || f.hints.Load() != f.seen || !now.Before(f.nextPoll) || f.isDue(now) || f.isLaneDue(now)
}

func (f *fetcher) isDue(now time.Time) bool {
	return !f.due.IsZero() && !now.Before(f.due)
}

// isLaneDue reports whether a message that holds back its lane is due.
func (f *fetcher) isLaneDue(now time.Time) bool {
	return !f.laneDue.IsZero() && !now.Before(f.laneDue)
}

// rest waits until something is wanted. A buffer that nobody takes from goes back to the group: its
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

// pause waits until something may be there.
func (f *fetcher) pause() {
	until := f.nextPoll
	for _, due := range []time.Time{f.due, f.laneDue} {
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

// fetch takes up to want messages.
func (f *fetcher) fetch(want int) error {
	ctx, cancel := context.WithTimeout(f.talking, statementTimeout)
	defer cancel()
	hinted := f.hints.Load() != f.seen
	f.seen = f.hints.Load()
	if f.back.Swap(false) {
		f.low.begin()
	}
	if err := f.settleDoubts(ctx); err != nil {
		return err
	}
	if err := f.promoteDue(ctx, hinted); err != nil {
		return err
	}
	f.turn.Lock()
	defer f.turn.Unlock()
	f.sure = false // until the database has answered
	taken, err := f.claim(ctx, want)
	if err != nil {
		return err
	}
	f.store.link.works()
	f.sure = true
	f.full = len(taken) >= want
	f.empty = !f.full && !f.rounds.goOn(time.Now()) && !f.lanes.left()
	now, finished := time.Now(), f.finished.Load()
	f.during = 0
	if now.Sub(f.took) < keepUp {
		f.during = finished - f.before
	}
	f.fetched, f.took, f.number, f.before = now, now, len(taken), finished
	f.deliver(taken)
	if len(taken) > 0 || hinted {
		f.wait.reset()
	}
	f.schedule()
	return nil
}

// schedule sets when to look again without a hint: soon after something was there, as what was
// inserted before may be committed later, and then ever more seldom.
func (f *fetcher) schedule() {
	wait := min(f.wait.next(), longestPoll)
	if f.wait.last >= longestBackoff {
		wait = idlePoll/2 + rand.N(idlePoll/2)
	}
	f.nextPoll = time.Now().Add(wait)
}

func (f *fetcher) claim(ctx context.Context, want int) ([]record, error) {
	c := claim{
		group: f.group, owner: f.owner, limit: want, bytes: f.store.cfg.PrefetchBytes, walk: f.walk,
		runs: f.bundle > 0, alone: f.alone,
	}
	var taken []record
	if f.group.order != driver.OrderedStrictly {
		began := time.Now()
		c.from = f.low.from(began)
		ready, err := f.store.claimReady(ctx, c)
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
	found, err := f.claimLanes(ctx, c)
	if err != nil {
		f.deliver(taken) // these are known
		return nil, err
	}
	return append(taken, found...), nil
}

// claimLanes claims from the lanes, where the feed's hints lead and where the walk goes on.
func (f *fetcher) claimLanes(ctx context.Context, c claim) ([]record, error) {
	began := time.Now()
	c.orphans = began.Sub(f.rounds.orphans) > longestPoll
	byKey := f.group.order == driver.OrderedByKey
	if byKey {
		if err := f.rounds.open(ctx, f.store); err != nil {
			return nil, err
		}
		c.fresh, c.brief = f.rounds.fresh(began)
		c.lanes, c.due = f.lanes.take(began)
		c.busy, c.hints = f.rounds.busy, began.Sub(f.rounds.walked) < walkEvery
	}
	found, err := f.store.claimLanes(ctx, c)
	if err != nil || found.left {
		f.lanes.restore(c.lanes, c.due)
	}
	if err != nil {
		return nil, err
	}
	if c.orphans {
		f.rounds.orphans = began
	}
	f.walk = found.walk
	f.rounds.claimed(began, found)
	f.laneDue = time.Time{}
	for _, head := range found.waiting {
		if byKey {
			f.lanes.wait(head.id, head.at)
		} else if f.laneDue.IsZero() || head.at.Before(f.laneDue) {
			f.laneDue = head.at
		}
	}
	if byKey {
		f.laneDue = f.lanes.next()
	}
	return found.taken, nil
}

// laneRounds decides how soon the walk over the lanes of a group goes on that finds nothing, and which rows
// are new to it. A group is crowded if more of its lanes wait than one claim looks at. Then claims follow
// one another until the walk has come round, which may take seconds; meanwhile each of them also looks at new
// rows. Between two rounds of a crowded group, claims look at new rows and where hints lead.
type laneRounds struct {
	opened  bool
	crowded bool
	claims  int           // of the round so far
	spent   time.Duration // on them
	next    time.Time     // when the next round may begin
	older   int64         // rows with ids up to this one are not new any more
	recent  int64         // the largest id that was read at turned
	turned  time.Time
	more    bool      // there are new rows that were not read yet
	busy    bool      // the last claim took something
	orphans time.Time // when what dead consumers had taken was last put back
	walked  time.Time // when the last claim was that did not only follow hints
}

// walkEvery is how long claims may follow hints alone that lead to enough messages. Else keys of which this feed
// has settled nothing would get no turn.
const walkEvery = 20 * time.Millisecond

// open remembers which rows are there already.
func (l *laneRounds) open(ctx context.Context, s *store) (err error) {
	if l.opened {
		return nil
	}
	newest, err := s.newest(ctx)
	if err != nil {
		return err
	}
	l.older = max(newest, 1)
	l.recent, l.turned, l.opened = l.older, time.Now(), true
	return nil
}

// fresh returns the id behind which rows are new, 0 if the walk finds everything soon, and whether the walk is
// to be short.
func (l *laneRounds) fresh(now time.Time) (id int64, brief bool) {
	if !l.crowded {
		return 0, false
	}
	return l.older, now.Before(l.next)
}

func (l *laneRounds) claimed(began time.Time, found lanes) {
	l.more, l.busy = found.more, len(found.taken) > 0
	if found.walked {
		l.walked = began
	}
	switch {
	case found.newest == 0:
	case found.more: // there are too many to read any of them twice
		l.older, l.recent, l.turned = found.newest, found.newest, began
	case began.Sub(l.turned) > time.Second/2: // what is committed late has that time
		l.older, l.recent, l.turned = l.recent, found.newest, began
	}
	l.spent += time.Since(began)
	switch {
	case !found.round:
		l.claims++
		l.crowded = l.crowded || found.crowded
		return
	case l.claims == 0:
		l.crowded = false
	}
	l.next = time.Now().Add(max(time.Second, 4*l.spent))
	l.claims, l.spent = 0, 0
}

// goOn reports whether a claim that found less than it wanted is to be followed by another at once.
func (l *laneRounds) goOn(now time.Time) bool {
	return l.crowded && (l.more || !now.Before(l.next))
}

// promoteDue makes delayed messages ready. What this process delays it knows of; for what others
// do it looks when something was published, and now and then.
func (f *fetcher) promoteDue(ctx context.Context, hinted bool) error {
	now := time.Now()
	if !f.isDue(now) && now.Before(f.lookDue) && !hinted {
		return nil
	}
	if f.isDue(now) {
		f.low.begin()
	}
	f.due = time.Time{}
	wait, ok, err := f.store.promote(ctx, f.group)
	if err != nil {
		return err
	}
	if ok {
		f.dueIn(wait)
	}
	f.lookDue = now.Add(longestPoll / 2)
	return f.tidier.tidy(ctx, f.store, f.group)
}

// dueIn notes when a delayed message is due.
func (f *fetcher) dueIn(wait time.Duration) {
	at := time.Now().Add(max(wait, 0))
	if f.due.IsZero() || at.Before(f.due) {
		f.due = at
	}
}

// settleDoubts gives back what a claim took whose answer was lost: the database says that it is this
// feed's, and the feed has never seen it.
func (f *fetcher) settleDoubts(ctx context.Context) error {
	if f.sure {
		return nil
	}
	ids, err := f.store.owned(ctx, f.group, f.owner)
	if err != nil {
		return err
	}
	if ids = f.settlements.unknown(ids); len(ids) > 0 {
		err = f.store.put(ctx, f.store.db, f.owner, ids, 1)
	}
	f.sure = err == nil
	return err
}

// trouble waits before the next try.
func (f *fetcher) trouble(err error) {
	if f.ctx.Err() != nil {
		return
	}
	f.prefetch = 0 // what was too much for a statement timeout is less next time
	f.empty = false
	wait := f.wait.next()
	if !f.store.temporary(err) {
		wait = longestBackoff
	}
	if wait > longestBackoff/4 { // a conflict or two with others is nobody's business
		f.store.cfg.Logger.Warn("leat: sql: fetch; trying again", "group", f.group.name, "err", err)
	}
	sleep(f.ctx, wait)
}

// cheapWhole is what a claim from the start may take for it to be no matter.
const cheapWhole = 5 * time.Millisecond

// lowest says where a claim may begin. Deleted messages stay in the index until nobody can see them
// any more, which a transaction that somebody leaves open delays; a claim need not walk over those
// that were taken a while ago. What is committed late, comes back or was another's is below: now and
// then, and whenever there seems to be nothing and it takes no long, a claim begins at the start.
type lowest struct {
	whole         time.Time // when the last claim from the start was
	took          time.Duration
	turned        time.Time
	older, recent int64
	all           bool
}

func (l *lowest) from(now time.Time) int64 {
	if l.all && l.took < cheapWhole || now.Sub(l.whole) > max(time.Second, 20*l.took) {
		return 0
	}
	return l.older
}

// begin makes the next claim begin at the start: something came back.
func (l *lowest) begin() { l.whole = time.Time{} }

func (l *lowest) taken(began time.Time, from int64, ready []record, short bool) {
	now := time.Now()
	if from == 0 {
		l.whole, l.took = now, now.Sub(began)
	}
	l.all = short
	if len(ready) == 0 {
		return
	}
	if now.Sub(l.turned) > time.Second/2 {
		l.older, l.recent, l.turned = l.recent, ready[len(ready)-1].id, now
	}
}
