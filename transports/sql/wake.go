package sql

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/leatbus/leat/bus"
)

// waker tells feeds that there may be something for them. It hears of messages in three ways: from
// publishers of this process; by NOTIFY from those of others, on PostgreSQL; and by looking whether
// ids were given out. None of them is relied on: every feed looks by itself now and then.
//
// A NOTIFY in the publisher's own transaction would make all commits of the database queue up behind
// one lock, to the disk and back. So it is sent afterwards, by itself and for many at once: it writes
// nothing, so that it holds the lock for a moment only. Where no other process consumes there is none.
type waker struct {
	transport *Transport
	id        string // tells this process's notifications
	channel   string
	topics    bus.TopicTable[*feed]
	looking   sync.Once

	mu     sync.Mutex
	feeds  map[*feed]struct{}
	news   map[string]struct{} // topics to notify others of
	notify chan struct{}       // nil where nobody listens
}

const (
	// notifyEvery is the least time between two notifications.
	notifyEvery = 5 * time.Millisecond
	// maxNotified is how many topics a notification names; what has more is for everybody. Its
	// text may have 8000 bytes.
	maxNotified = 25
	// askOthers is how long the answer holds whether there is anybody to notify. Who has just come looks by
	// himself meanwhile.
	askOthers = time.Second
)

func newWaker(t *Transport) *waker {
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.store.table("messages"))) // never fails
	return &waker{
		transport: t,
		id:        fmt.Sprintf("%x", newConsumerID()),
		channel:   fmt.Sprintf("leat_%x", h.Sum64()),
		feeds:     make(map[*feed]struct{}),
		news:      make(map[string]struct{}),
	}
}

func (w *waker) start() {
	t := w.transport
	if _, ok := t.store.db.(*pgxDatabase); ok {
		w.notify = make(chan struct{}, 1)
		t.work.Go(w.sendNotifications)
	}
}

// add makes the wake look out for a feed, from the first one on. The transport is open.
func (w *waker) add(f *feed, patterns []string) {
	t := w.transport
	w.mu.Lock()
	w.feeds[f] = struct{}{}
	w.mu.Unlock()
	w.topics.Set(f, patterns...)
	w.looking.Do(func() {
		t.work.Go(w.look)
		if db, ok := t.store.db.(*pgxDatabase); ok {
			t.work.Go(func() { w.listen(db) })
		}
	})
}

func (w *waker) remove(f *feed) {
	w.mu.Lock()
	delete(w.feeds, f)
	w.mu.Unlock()
	w.topics.Set(f)
}

func (w *waker) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.feeds {
		f.hint()
	}
}

// group wakes the feeds of one group.
func (w *waker) group(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.feeds {
		if f.group.name == name {
			f.hint()
		}
	}
}

// published is called after the commit.
func (w *waker) published(topic string) {
	for _, f := range w.topics.Match(topic) {
		f.hint()
	}
	if w.notify == nil {
		return
	}
	w.mu.Lock()
	w.news[topic] = struct{}{}
	w.mu.Unlock()
	wake(w.notify)
}

func (w *waker) sendNotifications() {
	t := w.transport
	var others bool
	var asked time.Time
	for {
		select {
		case <-w.notify:
		case <-t.ctx.Done():
			return
		}
		text := w.notification()
		ctx, cancel := context.WithTimeout(t.ctx, statementTimeout)
		var err error
		if time.Since(asked) > askOthers {
			others, err = w.others(ctx)
			asked = time.Now()
		}
		if err == nil && others {
			_, err = t.store.db.exec(ctx, t.store.sql(`SELECT pg_notify(?, ?)`), w.channel, text)
		}
		cancel()
		if err != nil {
			t.store.temporary(err) // others look by themselves
		}
		if !sleep(t.ctx, notifyEvery) {
			return
		}
	}
}

// others reports whether another process consumes anything.
func (w *waker) others(ctx context.Context) (bool, error) {
	ids, err := numbers(ctx, w.transport.store.db, w.transport.store.sql(`SELECT id FROM {consumers} WHERE expires_at > {now}`))
	if err != nil {
		return true, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	own := make(map[int64]bool, len(w.feeds))
	for f := range w.feeds {
		own[f.owner] = true
	}
	return slices.ContainsFunc(ids, func(id int64) bool { return !own[id] }), nil
}

// notification names the sender and the topics; no topics are all.
func (w *waker) notification() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	b.WriteString(w.id)
	if len(w.news) <= maxNotified {
		for topic := range w.news {
			b.WriteByte('\n')
			b.WriteString(topic)
		}
	}
	clear(w.news)
	return b.String()
}

func (w *waker) notified(text string) {
	lines := strings.Split(text, "\n")
	switch {
	case lines[0] == w.id: // its feeds know
	case len(lines) == 1:
		w.all()
	default:
		for _, topic := range lines[1:] {
			for _, f := range w.topics.Match(topic) {
				f.hint()
			}
		}
	}
}

// listen has a connection of its own, which is made anew when it breaks.
func (w *waker) listen(db *pgxDatabase) {
	t := w.transport
	var wait backoff
	for t.ctx.Err() == nil {
		err := w.listenOnce(db, wait.reset)
		if t.ctx.Err() != nil || !sleep(t.ctx, wait.next()) {
			return
		}
		t.store.cfg.Logger.Debug("leat: sql: listen; connecting again", "err", err)
	}
}

func (w *waker) listenOnce(db *pgxDatabase, connected func()) error {
	ctx := w.transport.ctx
	conn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), recycleTimeout)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+w.channel); err != nil {
		return err
	}
	connected()
	w.all() // for what was published meanwhile
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		w.notified(n.Payload)
	}
}

// look wakes everybody when ids were given out. It is one small query for all feeds.
func (w *waker) look() {
	t := w.transport
	var last int64
	for sleep(t.ctx, t.store.cfg.Poll) {
		w.mu.Lock()
		idle := len(w.feeds) == 0
		w.mu.Unlock()
		if idle {
			continue
		}
		ctx, cancel := context.WithTimeout(t.ctx, statementTimeout)
		newest, err := t.store.newest(ctx)
		cancel()
		if err != nil {
			t.store.temporary(err)
			sleep(t.ctx, longestBackoff/2)
			continue
		}
		if newest != last {
			last = newest
			w.all()
		}
	}
}
