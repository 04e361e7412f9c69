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

	Limit *int `placeholder:"N" help:"The maximum number of messages; 0 means all. The default is 100 for a table, and all for JSON."`
}

// Run lists the messages, a line each. It prints a table before it counts the rest.
func (c *poisonLs) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		if c.JSON {
			return c.lines(ctx, s)
		}
		limit := c.limit(tableLimit)
		t := newTable(s.Stdout, column{"ID", id}, column{"GROUP", phrase}, column{"EVENT", id}, column{"TYPE", phrase}, column{name: "AGE"},
			column{name: "ATTEMPTS"}, column{"CLASS", phrase}, column{"ERROR", prose})
		n := 0
		queues, err := c.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
			if n++; limit > 0 && n > limit {
				return nil
			}
			r := admin.Summary(queue.group, m)
			t.row(r.ID, r.Group, r.EventID, versioned(r), ago(r.At), r.Attempts, r.Class, short(r.Error, errorWidth))
			if n == limit {
				return t.flush()
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n == 0 {
			s.nothing(queues)
			return nil
		}
		if limit <= 0 || n < limit {
			return t.flush()
		}
		if n > limit {
			_, err = fmt.Fprintf(s.Stderr, "and %d more; --limit 0 shows all\n", n-limit)
		}
		return err
	})
}

func (c *poisonLs) lines(ctx context.Context, s *session) error {
	n, limit := 0, c.limit(0)
	_, err := c.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
		if n++; limit > 0 && n > limit {
			return errEnough
		}
		return s.line(admin.Summary(queue.group, m))
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// tableLimit is the default limit of a table, which a person reads.
const tableLimit = 100

func (c *poisonLs) limit(unless int) int {
	if c.Limit == nil {
		return unless
	}
	return *c.Limit
}

// versioned returns a record's type with its version.
func versioned(r admin.Record) string {
	if r.Version == 0 {
		return r.Type
	}
	return fmt.Sprintf("%s.v%d", r.Type, r.Version)
}
