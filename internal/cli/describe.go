package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/leatbus/leat/internal/admin"
)

type describe struct {
	connect `embed:""`

	JSON bool `name:"json" help:"Write one JSON object, for scripts."`
}

// Run describes the service; with --json, as an admin.Description.
func (c *describe) Run(ctx context.Context, e *Env) error {
	if e.OpenOwn != nil {
		e.Open = e.OpenOwn
	}
	return c.with(ctx, e, func(s *session) error {
		describer := s.Describer
		if remote, ok := s.Transport.(admin.Describer); ok {
			describer = remote
		}
		if describer == nil {
			return usage("the wiring is known in the service's process only: give the URL of its admin endpoint, or run your service's own binary, <service> describe")
		}
		ctx, cancel := s.soon(ctx)
		defer cancel()
		d, err := describer.Describe(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return s.line(d)
		}
		return writeDescription(s.Stdout, d)
	})
}

func writeDescription(out io.Writer, d admin.Description) error {
	w := new(strings.Builder)
	writePairs(w, "", [][2]string{
		{"service", d.Service}, {"build", d.Build}, {"transport", d.Transport}, {"capabilities", strings.Join(d.Capabilities, ", ")}, {"outbox", d.Outbox},
	})
	for _, g := range d.Groups {
		order := g.Order
		if g.Parks {
			order += ", later messages of a key wait behind a poisoned one"
		}
		takes := strings.Join(g.Types, ", ")
		takes = cmp.Or(takes, "any type")
		fmt.Fprintf(w, "\n%s\n", printable(g.Group))
		writePairs(w, "  ", [][2]string{
			{"state", string(g.State)},
			{"handler", g.Handler},
			{"takes", takes},
			{"topics", strings.Join(g.Topics, ", ")},
			{"order", order},
			{"concurrency", fmt.Sprint(g.Concurrency)},
			{"retry", strings.Join(g.Settings("retry"), ", ")},
		})
		for _, part := range slices.Sorted(maps.Keys(g.Degraded)) {
			writePairs(w, "  ", [][2]string{{"degraded", part + ": " + g.Degraded[part]}})
		}
		fmt.Fprintln(w, "  stack")
		for _, step := range g.Stack {
			fmt.Fprintf(w, "    %s\n", strings.TrimRight(fmt.Sprintf("%-12s%s", printable(step.Step), printable(strings.Join(step.Settings, ", "))), " "))
		}
	}
	_, err := io.WriteString(out, w.String())
	return err
}

// writePairs writes names and values, a line each. It omits empty values.
func writePairs(w io.Writer, indent string, pairs [][2]string) {
	for _, pair := range pairs {
		if pair[1] != "" {
			fmt.Fprintf(w, "%s%-14s%s\n", indent, pair[0], printable(pair[1]))
		}
	}
}
