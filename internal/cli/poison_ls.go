package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type poisonLs struct {
	connect `embed:""`
	output  `embed:""`
	filter  `embed:""`

	Limit int `default:"100" help:"Show so many at most; 0 shows all. JSON has no limit but one that is given."`
}

// Run lists them, a line each.
func (c *poisonLs) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		if c.JSON {
			return c.lines(ctx, s)
		}
		t := newTable(s.Stdout, "ID", "GROUP", "EVENT", "TYPE", "AGE", "ATTEMPTS", "CLASS", "ERROR")
		n := 0
		queues, err := c.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
			if n++; c.Limit > 0 && n > c.Limit {
				return nil
			}
			r := admin.Summary(queue.group, m)
			t.row(r.ID, r.Group, r.EventID, versioned(r), ago(r.At), r.Attempts, r.Class, short(r.Error, errorWidth))
			return nil
		})
		if err != nil {
			return err
		}
		if n == 0 {
			s.nothing(queues)
			return nil
		}
		if err := t.flush(); err != nil {
			return err
		}
		if c.Limit > 0 && n > c.Limit {
			_, err = fmt.Fprintf(s.Stderr, "and %d more; --limit 0 shows all\n", n-c.Limit)
		}
		return err
	})
}

func (c *poisonLs) lines(ctx context.Context, s *session) error {
	n := 0
	_, err := c.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
		if n++; c.Limit > 0 && c.Limit != defaultLimit && n > c.Limit {
			return errEnough
		}
		return s.line(admin.Summary(queue.group, m))
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// defaultLimit is that of the table, which somebody reads.
const defaultLimit = 100

// versioned returns a record's type with its version.
func versioned(r admin.Record) string {
	if r.Version == 0 {
		return r.Type
	}
	return fmt.Sprintf("%s.v%d", r.Type, r.Version)
}
