package queue

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A PrivateGroup is a group without subscriptions, ordered by key: it gets the messages that are inserted for it alone. Its methods may
// be called concurrently.
type PrivateGroup struct {
	core  *core
	group group
	born  int64 // when the group was created, in microseconds; identifies it
}

// NewPrivateGroup finds or creates the group, in the database of the transport. It blocks until the database can be reached or ctx is
// done.
func NewPrivateGroup(ctx context.Context, t *Transport, name string) (*PrivateGroup, error) {
	g := &PrivateGroup{core: t.core}
	err := t.core.Retry(ctx, func(ctx context.Context) (err error) {
		if g.group, err = t.core.groups.ensure(ctx, name, driver.OrderedByKey); err != nil {
			return err
		}
		g.born, _, err = database.Number(ctx, t.core.Pool, t.core.SQL(`SELECT created_at FROM {groups} WHERE id = ?`), g.group.id)
		return err
	})
	return g, err
}

// PublishTx inserts the messages in the user's transaction, and wakes receivers. It returns an error if tx is not a transaction on
// the group's database, and [driver.ErrClosed] if the transport is closed.
func (g *PrivateGroup) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if g.core.leases.isClosed() {
		return driver.ErrClosed
	}
	inserted, err := g.core.publisher.insertTx(ctx, tx, topic, msgs, g.insert)
	if err == nil && inserted == 0 && len(msgs) > 0 {
		err = g.noRowsError(ctx, tx)
	}
	if err != nil {
		return err
	}
	// The transaction is about to commit; the receivers now poll often for a while.
	g.core.waker.published(topic)
	return nil
}

// noRowsError returns the reason why nothing was inserted.
func (g *PrivateGroup) noRowsError(ctx context.Context, tx any) error {
	ex, _, err := g.core.UserTx(tx)
	if err == nil {
		err = g.core.RolledBack(ctx, ex)
	}
	if err == nil {
		err = fmt.Errorf("%w (or the group %s was deleted: restart the service)", database.ErrElsewhere, g.group.name)
	}
	return err
}

// insert returns the statement that inserts a batch into this group, and not into one of the same name in another database.
func (g *PrivateGroup) insert(b batch, arrays bool) (query string, args []any) {
	p, m := g.core.publisher, b.rows[0]
	if p.Name != sqlconfig.Postgres || len(b.rows) > 1 || m.delay > 0 {
		return p.insertSome(b, arrays, p.inOpenTx(g.group.only(g.born)))
	}
	in := database.StateReady
	if m.key != 0 {
		in = database.StateKeyed
	}
	return p.SQL(insertOnePostgres), []any{int(in), m.key, m.key, b.topic, m.uuid, m.headers, m.payload, g.group.id, g.born}
}

// pendingQuery reads a bounded number of index entries of each state, and one row: the lowest id has the earliest first_at.
const (
	pendingQuery = `SELECT p.n, COALESCE({now} - CASE WHEN m.first_at < 0 THEN 0 ELSE m.first_at END, 0) FROM (
	SELECT count(*) AS n, min(id) AS id FROM (` +
		pendingIn + `{ready}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{delayed}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{keyed}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{keyhead}` + pendingOrder + `) w
) p LEFT JOIN {messages} m ON m.id = p.id`
	pendingIn    = `SELECT id FROM (SELECT id FROM {messages} {force} WHERE group_id = ? AND state = `
	pendingOrder = ` ORDER BY pos, id LIMIT ?) s`
)

// Pending returns the number and the greatest age of the messages that are committed and not settled. It counts at most 50,000 messages
// in each state.
func (g *PrivateGroup) Pending(ctx context.Context) (n int, oldest time.Duration, err error) {
	type row struct{ n, age int64 }
	args := slices.Repeat([]any{g.group.id, inspectAtMost}, 4)
	all, err := database.Collect(ctx, g.core.Pool, func(r database.Rows, v *row) error { return r.Scan(&v.n, &v.age) }, g.core.SQL(pendingQuery), args...)
	if err != nil {
		return 0, 0, err
	}
	return int(all[0].n), max(time.Duration(all[0].age)*time.Microsecond, 0), nil
}

// Logger returns the logger of the configuration.
func (g *PrivateGroup) Logger() *slog.Logger { return g.core.Config.Logger }
