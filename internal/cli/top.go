package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type top struct {
	connect `embed:""`

	Every time.Duration `default:"2s" help:"The interval between updates."`
	Names []string      `arg:"" optional:"" name:"group" help:"Only these groups."`
}

// Run shows the groups repeatedly until it is interrupted.
func (c *top) Run(ctx context.Context, e *Env) error {
	switch {
	case c.Every < 100*time.Millisecond:
		return usage("--every=%s: it is at least 100ms", c.Every)
	case !isTerminal(e.Stdout):
		return usage("it draws on a terminal; %s groups --json is for scripts", e.Program)
	}
	return c.with(ctx, e, func(s *session) error {
		ticker := time.NewTicker(c.Every)
		defer ticker.Stop()
		var before []driver.GroupInfo
		for {
			groups, err := s.groups(ctx, c.Names...)
			if err != nil {
				return err
			}
			const home, erase = "\x1b[H", "\x1b[J"
			fmt.Fprintf(raw(s.Stdout), "%s%s%s  every %s, Ctrl-C ends\n\n%s\n", home, erase, printable(s.Where), c.Every,
				topTable(s, groups, before, c.Every).render(terminalWidth(s.Stdout), true))
			before = groups
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
}

// topTable adds the rate of change of the waiting messages to the table of leat groups.
func topTable(s *session, groups, before []driver.GroupInfo, every time.Duration) *tableWriter {
	waited := make(map[string]int, len(before))
	for _, g := range before {
		waited[g.Name] = g.Waiting
	}
	t := newTable(s.Stdout, append(groupColumns(), column{name: "CHANGE"})...)
	for _, g := range groups {
		change := ""
		if n, ok := waited[g.Name]; ok && n != driver.Unknown && g.Waiting != driver.Unknown {
			change = fmt.Sprintf("%+.0f/s", float64(g.Waiting-n)/every.Seconds())
		}
		t.row(append(groupCells(g), change)...)
	}
	return t
}

func groupColumns() []column {
	return []column{
		{"GROUP", phrase},
		{name: "WAITING"},
		{name: "DELAYED"},
		{name: "PARKED"},
		{name: "IN FLIGHT"},
		{name: "POISONED"},
		{name: "CONSUMERS"},
		{name: "OLDEST"},
	}
}

func groupCells(g driver.GroupInfo) []any {
	return []any{
		g.Name, shown(g.Waiting), shown(g.Delayed), shown(g.Parked), shown(g.InFlight), shown(g.Poisoned), consumers(g),
		ago(admin.DescribeGroup(g).Oldest),
	}
}
