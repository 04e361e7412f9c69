package sql

import (
	"context"
	"crypto/sha256"
	stdsql "database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// InboxConfig is how an inbox works. Its zero value does, on PostgreSQL.
type InboxConfig struct {
	// Tables are the tables that the inbox uses: the same as a transport's, made and migrated the
	// same way. Services may share them.
	Tables Config
	// Keep is how long ids are remembered. A message that is redelivered later is handled again. It holds for
	// the groups that this inbox is used for; ids of a group that nobody handles any more stay. 0 means 7
	// days.
	Keep time.Duration
	// Isolation is the level of the handlers' transactions. 0 means READ COMMITTED. What fails to
	// serialize is tried again like any other failure. SQLite knows one level.
	Isolation stdsql.IsolationLevel
}

const (
	defaultInboxKeep = 7 * 24 * time.Hour
	// maxInboxID is what fits the column; what is longer, or no text, is hashed.
	maxInboxID = 255
	// undoTimeout bounds a rollback, whose caller's context may be over.
	undoTimeout = 5 * time.Second
)

// Inbox is a [handlers.Inbox] in the tables of this package: the handler's transaction also records the
// message, so that both happen once or not at all. TX is *sql.Tx or pgx.Tx. Its methods may be called
// concurrently.
//
// A handler's transaction begins with the record. So the same message in two places at once is one
// transaction that waits for the other, and on SQLite it has the right to write from its beginning.
//
// [handlers.Inbox]: https://pkg.go.dev/github.com/leatbus/leat/handlers#Inbox
type Inbox[TX any] struct {
	database *database
	keep     time.Duration
	cursor   inboxCursor
	begin    func(ctx context.Context) (inboxTx[TX], error)

	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	release func() error // closes the pool where it is the inbox's own
}

// inboxTx is a transaction that is under way.
type inboxTx[TX any] struct {
	executor
	tx       TX
	commit   func(ctx context.Context) error
	rollback func(ctx context.Context) error
}

// NewInbox makes an inbox in the database of a pool, which stays the caller's: handlers get their
// transactions from it. It sees to the tables and waits for the database as [New] does.
//
// Each handler holds a connection of the pool while it runs, and waits for one if all are in use. Give the pool
// as many as the handlers' concurrencies add up to, and three more for a transport on the same pool. A handler
// that publishes by [bus.Bus.Publish] needs another connection meanwhile; publish by [bus.Bus.InTx].
func NewInbox(ctx context.Context, db *stdsql.DB, cfg InboxConfig) (*Inbox[*stdsql.Tx], error) {
	isolation := cfg.Isolation
	if isolation == stdsql.LevelDefault {
		isolation = stdsql.LevelReadCommitted
	}
	options := &stdsql.TxOptions{Isolation: isolation}
	if cfg.Tables.Dialect == SQLite {
		options = nil
	}
	return newInbox(ctx, &stdPool{db: db, tx: options}, cfg, func(ctx context.Context) (u inboxTx[*stdsql.Tx], err error) {
		tx, err := db.BeginTx(ctx, options)
		return inboxTx[*stdsql.Tx]{
			stdExecutor{tx},
			tx,
			func(context.Context) error { return tx.Commit() },
			func(context.Context) error { return tx.Rollback() },
		}, err
	})
}

// NewPgxInbox does what [NewInbox] does over a pgx pool.
func NewPgxInbox(ctx context.Context, pool *pgxpool.Pool, cfg InboxConfig) (*Inbox[pgx.Tx], error) {
	cfg.Tables.Dialect = Postgres
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	if cfg.Isolation != stdsql.LevelDefault {
		options.IsoLevel = pgx.TxIsoLevel(strings.ToLower(cfg.Isolation.String()))
	}
	return newInbox(ctx, &pgxPool{pool: pool}, cfg, func(ctx context.Context) (u inboxTx[pgx.Tx], err error) {
		tx, err := pool.BeginTx(ctx, options)
		if err != nil {
			return u, err
		}
		return inboxTx[pgx.Tx]{pgxExecutor{tx}, tx, tx.Commit, tx.Rollback}, nil
	})
}

// OpenInbox makes an inbox with connections of its own, from the URL of a transport, whose options name
// the tables.
func OpenInbox(ctx context.Context, u *url.URL, cfg InboxConfig) (*Inbox[*stdsql.Tx], error) {
	db, tables, err := OpenDB(u)
	if err != nil {
		return nil, err
	}
	cfg.Tables = tables
	cfg.Tables.Logger = driver.LoggerFrom(ctx)
	ctx, cancel := backoff.Bound(ctx, 0, defaultWait)
	defer cancel()
	i, err := NewInbox(ctx, db, cfg)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	i.release = db.Close
	return i, nil
}

func newInbox[TX any](ctx context.Context, over pool, cfg InboxConfig, begin func(context.Context) (inboxTx[TX], error)) (*Inbox[TX], error) {
	d, err := newDatabase(over, cfg.Tables)
	if err == nil && cfg.Keep < 0 {
		err = fmt.Errorf("inbox: keep is %s; it can't be negative", cfg.Keep)
	}
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	if err := (schema{d}).prepare(ctx); err != nil {
		return nil, fmt.Errorf("sql: inbox: %w", err)
	}
	i := &Inbox[TX]{database: d, keep: cfg.Keep, begin: begin, release: func() error { return nil }}
	i.cursor.groups = make(map[string]bool)
	if i.keep == 0 {
		i.keep = defaultInboxKeep
	}
	i.ctx, i.cancel = context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	i.work.Go(i.cleanUp)
	return i, nil
}

// Once runs fn in a transaction that records the id for the group, unless it is recorded already. It is
// for handlers.Tx; see [handlers.Inbox]. Its errors are those of the database, deadlocks and failures
// to serialize included, or fn's.
//
// [handlers.Inbox]: https://pkg.go.dev/github.com/leatbus/leat/handlers#Inbox
func (i *Inbox[TX]) Once(ctx context.Context, group, id string, fn func(ctx context.Context, tx TX) error) (seen bool, err error) {
	if i.ctx.Err() != nil {
		return false, driver.ErrClosed
	}
	i.cursor.use(group)
	u, err := i.begin(ctx)
	if err != nil {
		return false, fmt.Errorf("sql: begin: %w", err)
	}
	done := false
	defer func() { // also where fn panics
		if !done {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			_ = u.rollback(ctx) // whatever it says, nothing is committed
		}
	}()
	query := `INSERT INTO {inbox} (seen_at, group_name, message_id) VALUES ({now}, ?, ?) ON CONFLICT DO NOTHING`
	if i.database.name == MySQL { // what IGNORE would cut is not there
		query = `INSERT IGNORE INTO {inbox} (seen_at, group_name, message_id) VALUES ({now}, ?, ?)`
	}
	recorded, err := u.exec(ctx, i.database.sql(query), group, inboxID(id))
	if err != nil {
		return false, fmt.Errorf("sql: record message %s: %w", id, i.database.txError(err))
	}
	if recorded == 0 {
		return true, nil
	}
	if err := fn(ctx, u.tx); err != nil {
		return false, err
	}
	if err := i.recorded(ctx, u, group, id); err != nil {
		return false, err
	}
	done = true
	if err := u.commit(ctx); err != nil {
		return false, fmt.Errorf("sql: commit: %w", err)
	}
	return false, nil
}

// recorded fails if the transaction is no more: InnoDB rolls all of it back for a deadlock. If the handler
// does not return that error, its next statements are transactions of their own.
func (i *Inbox[TX]) recorded(ctx context.Context, u inboxTx[TX], group, id string) error {
	if i.database.name != MySQL {
		return nil // on the others the commit fails
	}
	_, there, err := number(ctx, u, i.database.sql(`SELECT seen_at FROM {inbox} WHERE group_name = ? AND message_id = ?`), group, inboxID(id))
	if err == nil && !there {
		err = errRolledBack
	}
	if err != nil {
		return fmt.Errorf("sql: message %s: %w", id, i.database.txError(err))
	}
	return nil
}

func inboxID(id string) string {
	if len(id) <= maxInboxID && utf8.ValidString(id) && strings.IndexByte(id, 0) < 0 {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Check reads the inbox's table.
func (i *Inbox[TX]) Check(ctx context.Context) error {
	_, _, err := number(ctx, i.database.pool, i.database.sql(`SELECT max(seen_at) FROM {inbox}`))
	if err != nil {
		return fmt.Errorf("sql: inbox: %w", err)
	}
	return nil
}

// Close ends the cleaning, and the connections that are the inbox's own. Close the bus first: its
// handlers need them.
func (i *Inbox[TX]) Close() error {
	i.cancel()
	i.work.Wait()
	return i.release()
}

// cleanUp deletes ids whose time is over.
func (i *Inbox[TX]) cleanUp() {
	every := min(cleanEvery, max(i.keep, time.Second))
	for backoff.Sleep(i.ctx, every) {
		ctx, cancel := context.WithTimeout(i.ctx, cleanEvery)
		err := i.clean(ctx)
		cancel()
		if err != nil && i.ctx.Err() == nil {
			i.database.temporary(err)
			i.database.cfg.Logger.Warn("leat: sql: clean up of the inbox failed", "error", err)
		}
	}
}

// inboxCursor is how far the cleaning has come. Rows are read by their time, others' groups' too, so that each
// pass reads only what has come of age since the one before.
type inboxCursor struct {
	mu     sync.Mutex
	groups map[string]bool // those that this inbox has recorded messages for
	seenAt int64           // what is no later is cleaned
	whole  time.Time       // when the last pass from the beginning began
	passes int             // how many times that was
}

// wholeInbox is how often a pass begins at the first row, for those whose transactions were open for so long
// that a pass went by before their commit.
const wholeInbox = time.Hour

// use notes that the inbox records messages of a group. What an earlier process has recorded for it is behind
// the cursor by now.
func (c *inboxCursor) use(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.groups[group] {
		c.groups[group] = true
		c.rewind()
	}
}

// rewind makes the next pass begin at the first row. It is called with the lock.
func (c *inboxCursor) rewind() {
	c.seenAt, c.whole = 0, time.Now()
	c.passes++
}

func (c *inboxCursor) start() (groups []any, seenAt int64, pass int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.whole) > wholeInbox {
		c.rewind()
	}
	for group := range c.groups {
		groups = append(groups, group)
	}
	return groups, c.seenAt, c.passes
}

// move goes on to a time, unless the next pass is to begin at the first row.
func (c *inboxCursor) move(pass int, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.passes == pass {
		c.seenAt = to
	}
}

// clean deletes ids of the groups that this inbox is used for, some at a time. Rows are deleted by their
// primary keys, so that none is waited for that a handler's transaction has not committed yet.
func (i *Inbox[TX]) clean(ctx context.Context) error {
	groups, from, pass := i.cursor.start()
	if len(groups) == 0 {
		return nil
	}
	s := i.database
	for {
		limit, some, err := number(ctx, s.pool, s.sql(`
			SELECT max(seen_at) FROM (SELECT seen_at FROM {inbox} WHERE seen_at > ? AND seen_at < {now} - ? ORDER BY seen_at LIMIT ?) old`),
			from, i.keep.Microseconds(), cleanAtOnce)
		if err != nil || !some {
			return err
		}
		if err := i.cleanSpan(ctx, groups, from, limit); err != nil {
			return err
		}
		i.cursor.move(pass, limit)
		from = limit
	}
}

// cleanSpan deletes the groups' ids that were recorded after from and no later than limit.
func (i *Inbox[TX]) cleanSpan(ctx context.Context, groups []any, from, limit int64) error {
	type row struct{ group, id string }
	s := i.database
	old, err := collect(ctx, s.pool, func(r rows, x *row) error { return r.Scan(&x.group, &x.id) },
		s.complete(`SELECT group_name, message_id FROM {inbox} WHERE seen_at > ? AND seen_at <= ?
			AND group_name IN (?`+strings.Repeat(", ?", len(groups)-1)+`)`), append([]any{from, limit}, groups...)...)
	if err != nil {
		return err
	}
	ids := make(map[string][]any)
	for _, x := range old {
		ids[x.group] = append(ids[x.group], x.id)
	}
	remove := `DELETE FROM {inbox}`
	if s.name == MySQL { // by the other index it would lock whatever lies between, and wait for its writers
		remove = `DELETE i FROM {inbox} i FORCE INDEX (PRIMARY)`
	}
	for group, all := range ids {
		for some := range slices.Chunk(all, cleanAtOnce) {
			query := s.complete(remove + ` WHERE seen_at <= ? AND group_name = ? AND message_id IN (?` + strings.Repeat(", ?", len(some)-1) + `)`)
			err := s.pool.inTx(ctx, func(tx executor) error {
				_, err := tx.exec(ctx, query, append([]any{limit, group}, some...)...)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
