package sql

import (
	"context"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// What one statement inserts at most: servers bound the size and the number of arguments.
const (
	maxInsert      = 400
	maxInsertBytes = 4 << 20
)

// Publish inserts the messages for every group that wants them, in one transaction: all are there
// when it returns nil, none when it returns another error, but for one case. Where the connection
// breaks while the database commits, nobody can tell; Publish tries again, so that messages may be
// there twice. It blocks as long as the database is away and ctx allows.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.leases.isClosed() {
		return driver.ErrClosed
	}
	if len(msgs) == 0 {
		return nil
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	rows, err := t.publications(msgs)
	if err != nil {
		return fmt.Errorf("sql: publish %s: %w", topic, err)
	}
	inserted, err := t.insert(ctx, topic, rows)
	if err == nil {
		err = t.file.gone()
	}
	if err != nil {
		return failure(fmt.Sprintf("publish %s: %d messages are not safe", topic, len(msgs)), err)
	}
	if inserted == 0 {
		t.unroutable.Add(int64(len(msgs)))
		return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, len(msgs)), Strict: t.cfg.Unroutable == UnroutableError}
	}
	t.waker.published(topic)
	return nil
}

func (s *statements) publications(msgs []*message.Message) ([]publication, error) {
	rows := make([]publication, len(msgs))
	for i, msg := range msgs {
		var err error
		if rows[i], err = s.newPublication(msg); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// insert returns how many rows were made, 0 where no group wants the topic.
func (t *Transport) insert(ctx context.Context, topic string, rows []publication) (inserted int64, err error) {
	if len(rows) < maxInsert {
		return t.commits.insert(ctx, batch{topic, rows})
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	err = t.retry(ctx, func(ctx context.Context) error {
		counts, err := t.publisher.insertAll(ctx, []batch{{topic, rows}})
		if err == nil {
			inserted = counts[0]
		}
		return err
	})
	return inserted, err
}

// publisher inserts messages.
type publisher struct{ *database }

// batch is messages of one topic.
type batch struct {
	topic string
	rows  []publication
}

// insertAll inserts all batches or none, and returns the number of rows for each.
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

// insertChunks inserts all or none: in one round trip where they are small and the driver can.
func (p publisher) insertChunks(ctx context.Context, chunks []batch, small bool) (affected []int64, err error) {
	statements := make([]statement, len(chunks))
	for i, c := range chunks {
		statements[i].query, statements[i].args = p.insertSome(c, p.arrays, p.wanted(c.topic))
	}
	affected = make([]int64, len(chunks))
	if len(statements) == 1 {
		affected[0], err = p.pool.exec(ctx, statements[0].query, statements[0].args...)
		return affected, err
	}
	if db, ok := p.pool.(pipeliner); ok && small {
		return db.pipeline(ctx, statements)
	}
	return affected, p.pool.inTx(ctx, func(tx executor) error {
		for i, st := range statements {
			if affected[i], err = tx.exec(ctx, st.query, st.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// chunks cuts a batch into what one statement takes. One message always fits.
func (b batch) chunks() (all []batch) {
	start, size := 0, 0
	for i, row := range b.rows {
		bytes := len(row.payload) + len(row.headers)
		if i > start && (i-start == maxInsert || size+bytes > maxInsertBytes) {
			all = append(all, batch{b.topic, b.rows[start:i]})
			start, size = i, 0
		}
		size += bytes
	}
	return append(all, batch{b.topic, b.rows[start:]})
}
