package queue

import (
	"context"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// The limits of one insert, in messages and bytes. Servers limit the size of a statement and the number of its arguments.
const (
	MaxInsert      = 400
	maxInsertBytes = 4 << 20
)

func publications(s *database.Statements, msgs []*message.Message) ([]publication, error) {
	rows := make([]publication, len(msgs))
	for i, msg := range msgs {
		var err error
		if rows[i], err = newPublication(s, msg); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// A publisher inserts messages.
type publisher struct{ *database.DB }

// A batch has messages of one topic.
type batch struct {
	topic string
	rows  []publication
}

// insertAll inserts all batches or none, and returns the number of rows of each.
func (p publisher) insertAll(ctx context.Context, batches []batch) (inserted []int64, err error) {
	var chunks []batch
	var of []int // the batch of each chunk
	for n, b := range batches {
		for _, c := range b.chunks() {
			chunks, of = append(chunks, c), append(of, n)
		}
	}
	affected, err := p.insertChunks(ctx, chunks, len(chunks) == len(batches))
	if err != nil {
		return nil, err
	}
	inserted = make([]int64, len(batches))
	for i, n := range of {
		inserted[n] += affected[i]
	}
	return inserted, nil
}

// insertChunks inserts all chunks or none, in one round trip if small is set and the pool supports it.
func (p publisher) insertChunks(ctx context.Context, chunks []batch, small bool) (affected []int64, err error) {
	statements := make([]database.Statement, len(chunks))
	for i, c := range chunks {
		statements[i].Query, statements[i].Args = p.insertSome(c, p.Arrays, wanted(p.Statements, c.topic))
	}
	affected = make([]int64, len(chunks))
	if len(statements) == 1 {
		affected[0], err = p.Pool.Exec(ctx, statements[0].Query, statements[0].Args...)
		return affected, err
	}
	if db, ok := p.Pool.(database.Pipeliner); ok && small {
		return db.Pipeline(ctx, statements)
	}
	return affected, p.Pool.InTx(ctx, func(tx database.Executor) error {
		for i, st := range statements {
			if affected[i], err = tx.Exec(ctx, st.Query, st.Args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// chunks divides a batch into parts that fit into one statement. One message always fits.
func (b batch) chunks() (all []batch) {
	start, size := 0, 0
	for i, row := range b.rows {
		bytes := len(row.payload) + len(row.headers)
		if i > start && (i-start == MaxInsert || size+bytes > maxInsertBytes) {
			all = append(all, batch{b.topic, b.rows[start:i]})
			start, size = i, 0
		}
		size += bytes
	}
	return append(all, batch{b.topic, b.rows[start:]})
}

// wantedHere returns the condition of wanted, which here matches no groups of other tables with the same names.
func (p publisher) wantedHere(topic string) routeFilter {
	return func(args []any) (string, []any) {
		where, args := route(p.Statements, topic, args)
		return where + insertHere, append(args, p.Born)
	}
}

// inOpenTx adds a condition to the filter: it matches no group if the server has rolled the transaction back.
func (p publisher) inOpenTx(to routeFilter) routeFilter {
	return func(args []any) (string, []any) {
		where, args := to(args)
		return where + p.InOpenTx(), args
	}
}

// noRowsError returns the reason why no row was inserted.
func (p publisher) noRowsError(ctx context.Context, tx any, topic string, n int) error {
	ex, _, err := p.UserTx(tx)
	if err != nil {
		return err
	}
	_, here, err := database.Number(ctx, ex, p.SQL(`SELECT version FROM {migrations} WHERE version = 1 AND applied_at = ?`), p.Born)
	if err != nil {
		return p.TxError(err)
	}
	if !here {
		return database.ErrElsewhere
	}
	if err := p.RolledBack(ctx, ex); err != nil {
		return err
	}
	return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, n), Strict: p.Config.StrictRoutes}
}

// insertTx inserts messages in the user's transaction with the statements that insert returns, and returns the number of rows.
func (p publisher) insertTx(ctx context.Context, tx any, topic string, msgs []*message.Message,
	insert func(b batch, arrays bool) (query string, args []any),
) (inserted int64, err error) {
	if err := p.FileGone(); err != nil {
		return 0, err
	}
	ex, arrays, err := p.UserTx(tx)
	if err != nil {
		return 0, err
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return 0, err
	}
	rows, err := publications(p.Statements, msgs)
	if err != nil {
		return 0, err
	}
	for _, c := range (batch{topic, rows}).chunks() {
		query, args := insert(c, arrays)
		n, err := ex.Exec(ctx, query, args...)
		if err != nil {
			return 0, p.TxError(err)
		}
		inserted += n
	}
	return inserted, nil
}

// insertSome returns the statement that inserts a batch, in the form for the driver.
func (p publisher) insertSome(b batch, arrays bool, to routeFilter) (query string, args []any) {
	if arrays {
		return insertArrays(p.Statements, b.topic, b.rows, to)
	}
	return insert(p.Statements, b.topic, b.rows, to)
}
