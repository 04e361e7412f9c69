package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// bulk has the flags of commands that remove many messages from poison queues.
type bulk struct {
	connect `embed:""`
	output  `embed:""`
	filter  `embed:""`

	All   bool `help:"All messages of all groups that the other flags select; required without --group and --id."`
	Count bool `help:"Only count the messages, by class of error."`
	Rate  int  `placeholder:"N" help:"The maximum number of messages per second."`
}

// result is the line of a bulk command's --json, one for each group.
type result struct {
	Group   string `json:"group"`
	Chosen  int    `json:"chosen"`
	Done    int    `json:"done"`
	Gone    int    `json:"gone"`              // somebody else has moved them
	Counted bool   `json:"counted,omitempty"` // nothing was done
}

// deed has the words for what a bulk command does.
type deed struct{ does, did, would string }

func (b bulk) validate() error {
	switch {
	case len(b.Group) == 0 && len(b.ID) == 0 && !b.All:
		return usage("give a group with --group, a message with --id, or all with --all")
	case b.Rate < 0:
		return usage("--rate=%d: it is a number of messages a second", b.Rate)
	}
	return nil
}

// count counts what would be moved.
func (b bulk) count(s *session, queues []chosen, classes *admin.Classes, n int, d deed) error {
	if b.JSON {
		for _, q := range queues {
			if err := s.line(result{Group: q.group, Chosen: len(q.ids), Counted: true}); err != nil {
				return err
			}
		}
		return nil
	}
	if n > 0 {
		if err := s.writeClasses(classes.List()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(s.Stdout, "would %s %s\n", d.would, messages(n))
	return err
}

// act moves some messages of a poison queue.
type act func(queue driver.PoisonQueue, ctx context.Context, ids ...string) (int, error)

// run moves the selected messages after a confirmation, or counts them. It may be run again for the rest.
func (b bulk) run(ctx context.Context, e *Env, d deed, do act, confirm func(n int) error) error {
	return b.with(ctx, e, func(s *session) error {
		queues, classes, n, err := b.choose(ctx, s)
		switch {
		case err != nil:
			return err
		case b.Count:
			return b.count(s, queues, classes, n, d)
		case n > 0:
			if err := confirm(n); err != nil {
				return err
			}
		}
		return b.move(ctx, s, queues, n, d, do)
	})
}

// move moves the messages.
func (b bulk) move(ctx context.Context, s *session, queues []chosen, n int, d deed, do act) error {
	bar, total, began := s.progress(d.does, n), admin.Moved{}, time.Now()
	for _, q := range queues {
		if len(q.ids) == 0 {
			continue
		}
		before := total.Done
		moved, err := admin.Move{
			IDs: q.ids, Rate: b.Rate,
			Act:      func(ctx context.Context, ids ...string) (int, error) { return do(q.queue, ctx, ids...) },
			Progress: func(done int) { bar.show(before + done) },
		}.Run(ctx)
		total.Done += moved.Done
		total.Gone += moved.Gone
		if b.JSON {
			if err := s.line(result{Group: q.group, Chosen: len(q.ids), Done: moved.Done, Gone: moved.Gone}); err != nil {
				return err
			}
		}
		if err != nil {
			bar.end()
			if ctx.Err() != nil {
				err = errInterrupted
			}
			return fmt.Errorf("%s %d of %s, the others were not moved; run it again to continue: %w", d.did, total.Done, messages(n), err)
		}
	}
	bar.end()
	if b.JSON {
		return nil
	}
	_, err := fmt.Fprintf(s.Stdout, "%s %s%s\n", d.did, messages(total.Done), aside(total, n, time.Since(began)))
	return err
}

// aside returns the details after the number.
func aside(total admin.Moved, n int, took time.Duration) string {
	text := ""
	if n >= 1000 {
		text = fmt.Sprintf(" in %s, %.0f/s", took.Round(time.Millisecond), float64(total.Done)/max(took.Seconds(), 0.001))
	}
	if total.Gone > 0 {
		text += fmt.Sprintf("; %d were gone already", total.Gone)
	}
	return text
}

type poisonReplay struct {
	bulk    `embed:""`
	consent `embed:""`

	DryRun  bool `aliases:"what-if" help:"Move nothing: run this program's own handlers with the messages, undo the effects, and print how many would succeed."`
	NoStart bool `help:"With --dry-run, don't run the program's start hooks."`
}

// Run replays the messages.
func (c *poisonReplay) Run(ctx context.Context, e *Env) error {
	if err := c.validate(); err != nil {
		return err
	}
	if c.DryRun {
		return c.dryRun(ctx, e)
	}
	return c.run(ctx, e, deed{does: "replaying", did: "replayed", would: "replay"}, driver.PoisonQueue.Replay, func(int) error { return nil })
}
