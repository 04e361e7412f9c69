// Package inbox records handled messages in the transactions of their handlers, so that the effects of each message happen once. The
// records are in a table of leat's, on PostgreSQL, MySQL, MariaDB or SQLite; package transports/sql describes the tables and the rights
// that they need.
package inbox

import (
	"cmp"
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
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// Config configures an [Inbox]. The zero value is ready to use on PostgreSQL.
type Config struct {
	// Tables configures the tables of the inbox: the same as a transport's, created and migrated the
	// same way. Several services may share them.
	Tables sqlconfig.Config
	// Keep is how long ids are kept. A message that is redelivered later is handled again. It applies to the
	// groups that this inbox has recorded messages for; ids of a group without handlers stay. 0 means 7 days.
	Keep time.Duration
	// Isolation is the isolation level of the handlers' transactions. 0 means READ COMMITTED. A
	// serialization failure is retried like any other failure. SQLite has only one level.
	Isolation stdsql.IsolationLevel
}

const (
	defaultKeep = 7 * 24 * time.Hour
	// maxID is the size of the column, in bytes. A longer id, or one that is not valid text, is hashed.
	maxID = 255
	// undoTimeout bounds a rollback, since the caller's context may be done.
	undoTimeout = 5 * time.Second
	// cleanInterval is how often expired ids are deleted. The interval is shorter if they are kept for a shorter time.
	cleanInterval = 30 * time.Second
	// cleanBatch is how many rows one statement deletes.
	cleanBatch = 1000
)

// An Inbox is a [handlers.Inbox] in leat's tables: the handler's transaction also records the
// message, so that both are committed or neither is. TX is *sql.Tx or pgx.Tx. Its methods may be called
// concurrently. Close it after the bus.
//
// A handler's transaction records the message first. So if the same message is handled twice at once, the second
// transaction waits for the first, and on SQLite the transaction is the writer from its start.
//
// [handlers.Inbox]: https://pkg.go.dev/github.com/leatbus/leat/handlers#Inbox
type Inbox[TX any] struct {
	database *database.DB
	keep     time.Duration
	cursor   cursor
	begin    func(ctx context.Context) (transaction[TX], error)

	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	release func() error // closes the pool if the inbox owns it
}

// A transaction is an open transaction.
type transaction[TX any] struct {
	tx       TX
	commit   func(ctx context.Context) error
	rollback func(ctx context.Context) error
}

// New returns an inbox that begins the handlers' transactions on db, which the caller owns. Like sql.New, it creates
// and migrates the tables, or checks them, and blocks until the database can be reached or ctx is done.
//
// Each handler uses a connection of the pool while it runs, and waits for one if all are in use. Give the pool
// as many as the sum of the handlers' concurrencies, and three more for a transport on the same pool. A handler
// that calls [bus.Bus.Publish] needs one more connection meanwhile; publish by [bus.Bus.InTx].
func New(ctx context.Context, db *stdsql.DB, cfg Config) (*Inbox[*stdsql.Tx], error) {
	isolation := cfg.Isolation
	if isolation == stdsql.LevelDefault {
		isolation = stdsql.LevelReadCommitted
	}
	options := &stdsql.TxOptions{Isolation: isolation}
	if cfg.Tables.Dialect == sqlconfig.SQLite {
		options = nil
	}
	return newInbox(ctx, &database.StdPool{DB: db, Tx: options}, cfg, func(ctx context.Context) (u transaction[*stdsql.Tx], err error) {
		tx, err := db.BeginTx(ctx, options)
		return transaction[*stdsql.Tx]{
			tx,
			func(context.Context) error { return tx.Commit() },
			func(context.Context) error { return tx.Rollback() },
		}, err
	})
}

// NewPgx does the same as [New] with a pgx pool.
func NewPgx(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Inbox[pgx.Tx], error) {
	cfg.Tables.Dialect = sqlconfig.Postgres
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	if cfg.Isolation != stdsql.LevelDefault {
		options.IsoLevel = pgx.TxIsoLevel(strings.ToLower(cfg.Isolation.String()))
	}
	return newInbox(ctx, &database.PgxPool{Pool: pool}, cfg, func(ctx context.Context) (u transaction[pgx.Tx], err error) {
		tx, err := pool.BeginTx(ctx, options)
		if err != nil {
			return u, err
		}
		return transaction[pgx.Tx]{tx, tx.Commit, tx.Rollback}, nil
	})
}

// Open returns an inbox with its own connections, for the URL of a transport. The URL's options replace
// cfg.Tables.
func Open(ctx context.Context, u *url.URL, cfg Config) (*Inbox[*stdsql.Tx], error) {
	source, err := config.Parse(u)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	db, err := database.OpenDB(source)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	cfg.Tables = source.Config
	cfg.Tables.Logger = driver.LoggerFrom(ctx)
	ctx, cancel := backoff.Bound(ctx, 0, config.DefaultWait)
	defer cancel()
	i, err := New(ctx, db, cfg)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	i.release = db.Close
	return i, nil
}

func newInbox[TX any](ctx context.Context, over database.Pool, cfg Config, begin func(context.Context) (transaction[TX], error)) (*Inbox[TX], error) {
	d, err := database.New(over, cfg.Tables)
	if err == nil && cfg.Keep < 0 {
		err = fmt.Errorf("inbox: keep is %s; it can't be negative", cfg.Keep)
	}
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	if err := d.Prepare(ctx); err != nil {
		return nil, fmt.Errorf("sql: inbox: %w", err)
	}
	i := &Inbox[TX]{database: d, keep: cfg.Keep, begin: begin, release: func() error { return nil }}
	i.cursor.groups = make(map[string]bool)
	i.keep = cmp.Or(i.keep, defaultKeep)
	i.ctx, i.cancel = context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	i.work.Go(i.cleanUp)
	return i, nil
}

// Once runs fn in a transaction that also records the id for the group. If the id is recorded already, it returns
// true and does not call fn. It blocks while another transaction records the same id. It returns fn's error, an
// error of the database (including deadlocks and serialization failures), or [driver.ErrClosed]. handlers.Tx
// calls it; see [handlers.Inbox].
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
	defer func() { // also if fn panics
		if !done {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			_ = u.rollback(ctx) // nothing is committed, even if this fails
		}
	}()
	ex, _, err := i.database.UserTx(u.tx)
	if err != nil {
		return false, err
	}
	query := `INSERT INTO {inbox} (seen_at, group_name, message_id) VALUES ({now}, ?, ?) ON CONFLICT DO NOTHING`
	if i.database.Name == sqlconfig.MySQL { // IGNORE also truncates values without an error, but columnID fits the column
		query = `INSERT IGNORE INTO {inbox} (seen_at, group_name, message_id) VALUES ({now}, ?, ?)`
	}
	recorded, err := ex.Exec(ctx, i.database.SQL(query), group, columnID(id))
	if err != nil {
		return false, fmt.Errorf("sql: record message %s: %w", id, i.database.TxError(err))
	}
	if recorded == 0 {
		return true, nil
	}
	if err := fn(ctx, u.tx); err != nil {
		return false, err
	}
	if err := i.recorded(ctx, ex, group, id); err != nil {
		return false, err
	}
	done = true
	if err := u.commit(ctx); err != nil {
		return false, fmt.Errorf("sql: commit: %w", i.database.TxError(err))
	}
	return false, nil
}

// recorded returns an error if the transaction has been rolled back: InnoDB does that for a deadlock. If the handler
// does not return the deadlock's error, its next statements run outside the transaction.
func (i *Inbox[TX]) recorded(ctx context.Context, ex database.Executor, group, id string) error {
	if i.database.Name != sqlconfig.MySQL {
		return nil // on other databases the commit fails
	}
	_, there, err := database.Number(ctx, ex, i.database.SQL(`SELECT seen_at FROM {inbox} WHERE group_name = ? AND message_id = ?`), group, columnID(id))
	if err == nil && !there {
		err = database.ErrRolledBack
	}
	if err != nil {
		return fmt.Errorf("sql: message %s: %w", id, i.database.TxError(err))
	}
	return nil
}

// columnID returns the value of the column for an id.
func columnID(id string) string {
	if len(id) <= maxID && utf8.ValidString(id) && strings.IndexByte(id, 0) < 0 {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Check returns an error if the inbox's table can't be read.
func (i *Inbox[TX]) Check(ctx context.Context) error {
	_, _, err := database.Number(ctx, i.database.Pool, i.database.SQL(`SELECT max(seen_at) FROM {inbox}`))
	if err != nil {
		return fmt.Errorf("sql: inbox: %w", err)
	}
	return nil
}

// Close stops the cleanup, and closes the connections that the inbox owns. Close the bus first, because its
// handlers use them.
func (i *Inbox[TX]) Close() error {
	i.cancel()
	i.work.Wait()
	return i.release()
}

// cleanUp deletes expired ids until the inbox is closed.
func (i *Inbox[TX]) cleanUp() {
	every := min(cleanInterval, max(i.keep, time.Second))
	for backoff.Sleep(i.ctx, every) {
		ctx, cancel := context.WithTimeout(i.ctx, cleanInterval)
		err := i.clean(ctx)
		cancel()
		if err != nil && i.ctx.Err() == nil {
			i.database.Temporary(err)
			i.database.Config.Logger.Warn("leat: sql: inbox cleanup failed", "error", err)
		}
	}
}

// A cursor is the position of the cleanup. Rows of all groups are read by their time, so that each pass
// reads only the rows that have expired since the previous one.
type cursor struct {
	mu     sync.Mutex
	groups map[string]bool // those that this inbox has recorded messages for
	seenAt int64           // rows up to this time are cleaned
	whole  time.Time       // start of the last pass from the first row
	passes int             // number of passes from the first row
}

// fullPassEvery is how often a pass starts at the first row, for rows of long transactions that were committed
// after a pass had read past them.
const fullPassEvery = time.Hour

// use records that the inbox is used for a group. For a new group it rewinds the cursor, because rows that
// an earlier process has recorded may be behind it.
func (c *cursor) use(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.groups[group] {
		c.groups[group] = true
		c.rewind()
	}
}

// rewind makes the next pass start at the first row. The caller holds mu.
func (c *cursor) rewind() {
	c.seenAt, c.whole = 0, time.Now()
	c.passes++
}

func (c *cursor) start() (groups []any, seenAt int64, pass int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.whole) > fullPassEvery {
		c.rewind()
	}
	for group := range c.groups {
		groups = append(groups, group)
	}
	return groups, c.seenAt, c.passes
}

// move sets the cursor to a time, unless rewind was called since the pass started.
func (c *cursor) move(pass int, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.passes == pass {
		c.seenAt = to
	}
}

// clean deletes ids of the groups that this inbox is used for, in batches. Rows are deleted by their
// primary keys, so that it does not wait for rows that a handler's transaction has not committed yet.
func (i *Inbox[TX]) clean(ctx context.Context) error {
	groups, from, pass := i.cursor.start()
	if len(groups) == 0 {
		return nil
	}
	s := i.database
	for {
		limit, some, err := database.Number(ctx, s.Pool, s.SQL(`
			SELECT max(seen_at) FROM (SELECT seen_at FROM {inbox} WHERE seen_at > ? AND seen_at < {now} - ? ORDER BY seen_at LIMIT ?) old`),
			from, i.keep.Microseconds(), cleanBatch)
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
	old, err := database.Collect(ctx, s.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.group, &x.id) },
		s.Complete(`SELECT group_name, message_id FROM {inbox} WHERE seen_at > ? AND seen_at <= ?
			AND group_name IN (?`+strings.Repeat(", ?", len(groups)-1)+`)`), append([]any{from, limit}, groups...)...)
	if err != nil {
		return err
	}
	ids := make(map[string][]any)
	for _, x := range old {
		ids[x.group] = append(ids[x.group], x.id)
	}
	remove := `DELETE FROM {inbox}`
	if s.Name == sqlconfig.MySQL { // the other index would lock the gaps between the rows, and wait for their writers
		remove = `DELETE i FROM {inbox} i FORCE INDEX (PRIMARY)`
	}
	for group, all := range ids {
		for some := range slices.Chunk(all, cleanBatch) {
			query := s.Complete(remove + ` WHERE seen_at <= ? AND group_name = ? AND message_id IN (?` + strings.Repeat(", ?", len(some)-1) + `)`)
			err := s.Pool.InTx(ctx, func(tx database.Executor) error {
				_, err := tx.Exec(ctx, query, append([]any{limit, group}, some...)...)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
