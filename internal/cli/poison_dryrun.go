package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// dryRunAtOnce is how many messages are in memory at once.
const dryRunAtOnce = 500

// dryRun runs the program's own handlers with the messages, and changes no queue.
func (c *poisonReplay) dryRun(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		runner, err := s.runner()
		if err != nil {
			return err
		}
		queues, _, n, err := c.choose(ctx, s)
		if err != nil {
			return err
		}
		queues = slices.DeleteFunc(queues, func(q chosen) bool { return len(q.ids) == 0 })
		if err := c.agreeTo(ctx, s, runner, queues); err != nil {
			return err
		}
		if s.Start != nil && !c.NoStart && n > 0 {
			if err := s.Start(ctx); err != nil {
				return fmt.Errorf("the service does not start, so nothing was tried; with --no-start it is tried without its start hooks: %w", err)
			}
		}
		prospects, err := c.try(ctx, s, runner)
		if err != nil {
			return err
		}
		return c.tell(s, prospects, n)
	})
}

// runner returns the runner with the handlers.
func (s *session) runner() (admin.DryRunner, error) {
	if s.DryRunner != nil {
		return s.DryRunner, nil
	}
	if remote, ok := s.Transport.(admin.DryRunner); ok {
		return remote, nil
	}
	return nil, usage("--dry-run needs the handlers: run your service's own binary, <service> poison replay --dry-run, or give the URL of its admin endpoint; to count the messages, use --count")
}

// agreeTo asks for confirmation if some effects can't be undone.
func (c *poisonReplay) agreeTo(ctx context.Context, s *session, runner admin.DryRunner, queues []chosen) error {
	var lasting []string
	for _, q := range queues {
		undoes, err := runner.Undoes(ctx, q.group)
		if err != nil {
			return err
		}
		if !undoes {
			lasting = append(lasting, q.group)
		}
	}
	if len(lasting) == 0 {
		return nil
	}
	fmt.Fprintf(s.Stderr, "What %s does outside of its context and of handlers.Tx happens, and can't be undone.\n", strings.Join(lasting, ", "))
	return c.confirm(ctx, s.Env)("Go on?")
}

// try reads the messages again and tries them, in batches.
func (c *poisonReplay) try(ctx context.Context, s *session, runner admin.DryRunner) (prospects admin.Prospects, err error) {
	var (
		group string
		some  []driver.PoisonedMessage
	)
	flush := func() error {
		if len(some) == 0 {
			return nil
		}
		results, err := runner.DryRun(ctx, group, some)
		if err != nil {
			return err
		}
		classes := make(map[string]string, len(some)) // of their errors, by id
		for _, m := range some {
			classes[m.ID] = m.Fault.Class
		}
		for _, r := range results {
			prospects.Add(group, classes[r.ID], r)
		}
		some = some[:0]
		return nil
	}
	_, err = c.each(ctx, s, func(q *chosen, m driver.PoisonedMessage) error {
		if q.group != group || len(some) == dryRunAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
		group, some = q.group, append(some, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return prospects, flush()
}

func (c *poisonReplay) tell(s *session, prospects admin.Prospects, n int) error {
	if c.JSON {
		for _, p := range prospects {
			if err := s.line(p); err != nil {
				return err
			}
		}
		return nil
	}
	succeed, published := 0, 0
	t := newTable(s.Stdout, column{"GROUP", phrase}, column{"CLASS", phrase}, column{name: "COUNT"}, column{name: "WOULD SUCCEED"},
		column{"NOW FAILS WITH", phrase}, column{"LAST ERROR", prose})
	for _, p := range prospects {
		t.row(p.Group, p.Class, p.Count, p.Succeed, strings.Join(p.Now, ", "), short(p.Sample, errorWidth))
		succeed += p.Succeed
		published += p.Published
	}
	if n > 0 {
		if err := t.flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(s.Stdout, "%d of %s would now succeed, and %s would be published; nothing was moved\n", succeed, messages(n), messages(published))
	return err
}
