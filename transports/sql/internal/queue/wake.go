package queue

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A waker wakes receivers when there may be messages for them. It learns of messages in three ways: from publishers of this process; by
// NOTIFY from those of other processes, on PostgreSQL; and by polling for rows of its groups. None of them has to be reliable: every
// receiver also polls for a while after it was woken, and from time to time.
//
// A NOTIFY in the publisher's own transaction would serialize all commits of the database behind one lock, which is held until the
// disk has the commit. So the notification is sent afterwards, in a transaction that writes nothing, for many messages at once. It is
// not sent if no other process consumes.
type waker struct {
	*lifetime
	consumers
	id      string // identifies the notifications of this waker
	channel string
	topics  driver.TopicTable[*consumer]
	started sync.Once // polling and listening, with the first receiver

	receives atomic.Bool // notifications arrive

	mu        sync.Mutex
	receivers map[*consumer]struct{}
	news      map[string]struct{} // topics to notify others of
	notify    chan struct{}       // nil if the pool does not support notifications
}

const (
	// notifyEvery is the least time between two notifications.
	notifyEvery = 5 * time.Millisecond
	// maxNotified is how many topics a notification names; one with more wakes all receivers. Its text may have 8000 bytes.
	maxNotified = 25
	// pollListening is how often a process polls for new rows although it gets notifications: messages may be inserted without one, and
	// a lost connection loses notifications.
	pollListening = 250 * time.Millisecond
	// pingTopic is the topic of a process's notification to itself.
	pingTopic = "leat.ping"
	// longestPoll is the longest time between two polls of a receiver that was woken, and of the waker for the groups of all
	// receivers. A receiver that has found nothing several times relies on the waker, and polls only every idlePoll.
	longestPoll = time.Second
	idlePoll    = 30 * time.Second
	// askOthers is how long the waker caches whether another process consumes. A new process polls meanwhile.
	askOthers = time.Second
)

func newWaker(life *lifetime, all consumers) *waker {
	h := fnv.New64a()
	_, _ = h.Write([]byte(all.Table("messages"))) // never fails
	return &waker{
		lifetime:  life,
		consumers: all,
		id:        fmt.Sprintf("%x", newConsumerID()),
		channel:   fmt.Sprintf("leat_%x", h.Sum64()),
		receivers: make(map[*consumer]struct{}),
		news:      make(map[string]struct{}),
	}
}

func (w *waker) start() {
	if _, ok := w.Pool.(*database.PgxPool); ok {
		w.notify = make(chan struct{}, 1)
		w.work.Go(w.sendNotifications)
	}
}

// add adds a receiver, and starts polling and listening with the first one. The transport must be open.
func (w *waker) add(f *consumer, patterns []string) {
	w.mu.Lock()
	w.receivers[f] = struct{}{}
	w.mu.Unlock()
	w.topics.Set(f, patterns...)
	w.started.Do(func() {
		w.work.Go(w.poll)
		if db, ok := w.Pool.(*database.PgxPool); ok {
			w.work.Go(func() { w.listen(db) })
		}
	})
}

func (w *waker) remove(f *consumer) {
	w.mu.Lock()
	delete(w.receivers, f)
	w.mu.Unlock()
	w.topics.Set(f)
}

func (w *waker) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.receivers {
		f.hint()
	}
}

// group wakes the receivers of one group.
func (w *waker) group(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.receivers {
		if f.group.name == name {
			f.hint()
		}
	}
}

// published wakes the consumers of a topic, in this and other processes. It is called after the commit.
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
	var others bool
	var asked time.Time
	for {
		select {
		case <-w.notify:
		case <-w.ctx.Done():
			return
		}
		text := w.notification()
		ctx, cancel := context.WithTimeout(w.ctx, database.StatementTimeout)
		var err error
		if time.Since(asked) > askOthers {
			others, err = w.others(ctx)
			asked = time.Now()
		}
		if err == nil && others {
			_, err = w.Pool.Exec(ctx, w.SQL(`SELECT pg_notify(?, ?)`), w.channel, text)
		}
		cancel()
		if err != nil {
			w.Temporary(err) // other processes poll
		}
		if !backoff.Sleep(w.ctx, notifyEvery) {
			return
		}
	}
}

// others reports whether another process consumes anything.
func (w *waker) others(ctx context.Context) (bool, error) {
	ids, err := w.unexpired(ctx)
	if err != nil {
		return true, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	own := make(map[int64]bool, len(w.receivers))
	for f := range w.receivers {
		own[f.id] = true
	}
	return slices.ContainsFunc(ids, func(id int64) bool { return !own[id] }), nil
}

// notification returns the text of the next notification: the sender's id and the topics. A text without topics means all.
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
	w.receives.Store(true)
	lines := strings.Split(text, "\n")
	switch {
	case lines[0] == w.id: // published has woken the receivers
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

// listen receives notifications on its own connection, and reconnects when that is lost.
func (w *waker) listen(db *database.PgxPool) {
	wait := database.NewBackoff()
	for w.ctx.Err() == nil {
		err := db.OnConn(w.ctx, func(conn *pgx.Conn) error { return w.listenOn(conn, wait.Reset) })
		if w.ctx.Err() != nil || !backoff.Sleep(w.ctx, wait.Next()) {
			return
		}
		w.Config.Logger.Debug("leat: sql: listen connection lost", "error", err)
	}
}

func (w *waker) listenOn(conn *pgx.Conn, connected func()) error {
	ctx := w.ctx
	if _, err := conn.Exec(ctx, "LISTEN "+w.channel); err != nil {
		return err
	}
	connected()
	defer w.receives.Store(false)
	w.all() // for messages that were published while it did not listen
	w.work.Go(w.ping)
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		w.notified(n.Payload)
	}
}

// ping sends a notification to this process, which shows that notifications arrive. It uses another connection than listen, as other
// processes do, because a pooler may deliver a connection's own notifications only.
func (w *waker) ping() {
	ctx, cancel := context.WithTimeout(w.ctx, database.StatementTimeout)
	defer cancel()
	_, _ = w.Pool.Exec(ctx, w.SQL(`SELECT pg_notify(?, ?)`), w.channel, w.id+"\n"+pingTopic) // if it fails, the waker polls more often
}

// poll wakes the receivers of groups that have messages. One query serves all receivers of the process: often for new rows, and once a
// second for all other messages that can be claimed.
//
// A row is new until it has been read for half a second: ids are given out before they are committed.
func (w *waker) poll() {
	var rows newRows
	readAll := time.Now()
	for backoff.Sleep(w.ctx, w.pause()) {
		consumed := w.consumed()
		if len(consumed) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(w.ctx, database.StatementTimeout)
		groups, all, err := rows.read(ctx, w.DB)
		if now := time.Now(); err == nil && now.Sub(readAll) > longestPoll {
			readAll = now
			var more []int64
			more, err = w.claimable(ctx, consumed)
			groups = append(groups, more...)
		}
		cancel()
		switch {
		case err != nil:
			w.Temporary(err)
			backoff.Sleep(w.ctx, database.LongestBackoff/2)
		case all:
			w.all()
		default:
			w.groups(groups)
		}
	}
}

// consumed returns the ids of the groups of the receivers.
func (w *waker) consumed() (ids []int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.receivers {
		ids = append(ids, f.group.id)
	}
	return ids
}

// pause returns the time until the next poll, which is longer if notifications arrive. Behind a pooler they may never arrive.
func (w *waker) pause() time.Duration {
	if w.receives.Load() {
		return max(w.Config.Poll, pollListening)
	}
	return w.Config.Poll
}

// groups wakes the receivers of some groups.
func (w *waker) groups(ids []int64) {
	if len(ids) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.receivers {
		if slices.Contains(ids, f.group.id) {
			f.hint()
		}
	}
}

// newRows records how far the rows of all groups were read.
type newRows struct {
	newest int64
	seen   watermark
}

// newRowsLimit is up to how many new rows read returns their groups. If there are more, all receivers are woken.
const newRowsLimit = 1000

// read returns the groups of new rows. all is true if there are too many rows.
func (r *newRows) read(ctx context.Context, d *database.DB) (groups []int64, all bool, err error) {
	newest, found, err := r.ask(ctx, d)
	if err != nil {
		return nil, false, err
	}
	all = r.seen.turned.IsZero() || newest-r.seen.older > 10*newRowsLimit
	total := int64(0)
	for _, x := range found {
		groups = append(groups, x.group)
		total += x.n
	}
	all = all || total >= newRowsLimit
	r.newest = newest
	if all {
		r.seen.reset(time.Now(), newest)
	} else {
		r.seen.advance(time.Now(), newest)
	}
	return groups, all, nil
}

// rowsOf is the number of new rows of a group.
type rowsOf struct{ n, group int64 }

const newRowsByGroup = `SELECT group_id, count(*) AS n FROM (SELECT group_id FROM {messages} WHERE id > ? ORDER BY id LIMIT ?) n GROUP BY group_id`

// ask reads the highest id and the new rows. On PostgreSQL that is one query. On other databases the second query runs only if the
// highest id has changed.
func (r *newRows) ask(ctx context.Context, d *database.DB) (newest int64, found []rowsOf, err error) {
	if d.Name == sqlconfig.Postgres {
		type row struct {
			newest   int64
			group, n stdsql.NullInt64
		}
		all, err := database.Collect(ctx, d.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.newest, &x.group, &x.n) },
			d.SQL(`SELECT `+newestOfSequence+`, n.group_id, n.n FROM {messages_id_seq} s LEFT JOIN (`+newRowsByGroup+`) n ON true`), r.seen.older, newRowsLimit)
		for _, x := range all {
			newest = x.newest
			if x.group.Valid {
				found = append(found, rowsOf{x.n.Int64, x.group.Int64})
			}
		}
		return newest, found, err
	}
	newest, err = newestID(ctx, d)
	newest = max(newest, r.newest) // newest decreases when rows are deleted
	if err != nil || newest == r.newest && newest == r.seen.older || newest-r.seen.older > 10*newRowsLimit {
		return newest, nil, err
	}
	found, err = database.Collect(ctx, d.Pool, func(r database.Rows, x *rowsOf) error { return r.Scan(&x.group, &x.n) }, d.SQL(newRowsByGroup), r.seen.older, newRowsLimit)
	return newest, found, err
}

// claimable returns those of the groups that have a message that can be claimed, is due, or waits in a key queue.
func (w *waker) claimable(ctx context.Context, ids []int64) ([]int64, error) {
	query, args := w.WithIDs(`SELECT g.id FROM {groups} g WHERE (
		EXISTS (SELECT 1 FROM {messages} m WHERE m.group_id = g.id AND m.state = {ready}
			AND (m.owner = 0 OR m.owner NOT IN (SELECT c.id FROM {consumers} c WHERE c.group_id = g.id AND c.expires_at > {now})))
		OR EXISTS (SELECT 1 FROM {messages} m WHERE m.group_id = g.id AND m.state = {delayed} AND m.pos <= {now})
		OR EXISTS (SELECT 1 FROM {messages} m WHERE m.group_id = g.id AND m.state IN ({keyed}, {keyhead}))
	) AND g.id {in}`, ids)
	return database.Numbers(ctx, w.Pool, query, args...)
}

// newestOfSequence is the highest id. Before the first one, last_value is 1 too.
const newestOfSequence = `CASE WHEN s.is_called THEN s.last_value ELSE 0 END`

// newestID returns the highest id, 0 if there was never a message. It changes when messages are inserted, sometimes before they are
// committed.
func newestID(ctx context.Context, d *database.DB) (int64, error) {
	query := `SELECT max(id) FROM {messages}`
	if d.Name == sqlconfig.Postgres {
		query = `SELECT ` + newestOfSequence + ` FROM {messages_id_seq} s`
	}
	n, _, err := database.Number(ctx, d.Pool, d.SQL(query))
	return n, err
}
