package verbs

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/operator"
)

type doctor struct {
	connect `embed:""`
	output  `embed:""`
}

// Run checks, and fails where something is wrong; with --json a line is an operator.Finding.
func (c *doctor) Run(ctx context.Context, e *Env) error {
	wrong := false
	for _, f := range c.findings(ctx, e) {
		wrong = wrong || f.Err != nil
		if err := c.write(e, f); err != nil {
			return err
		}
	}
	if wrong {
		return errQuiet
	}
	return nil
}

func (c *doctor) findings(ctx context.Context, e *Env) []bus.Finding {
	s, err := c.open(ctx, e)
	if isUsage(err) {
		return []bus.Finding{{Check: "URL", Err: err, Cure: "correct it; the page of its transport lists the options"}}
	}
	if err != nil {
		return []bus.Finding{{Check: "open " + e.Where, Err: err, Cure: "start what the URL names, or correct its host, port, user and password"}}
	}
	defer s.close()
	inspector, err := s.inspector()
	if err != nil {
		return []bus.Finding{{Check: "open " + e.Where, Text: "it answers, and can't tell more"}}
	}
	soon, cancel := s.soon(ctx)
	defer cancel()
	return operator.Diagnose(soon, inspector)
}

func (c *doctor) write(e *Env, f bus.Finding) error {
	line := operator.DescribeFinding(f)
	line.Error = Redact(line.Error)
	if c.JSON {
		return e.line(line)
	}
	if line.OK {
		_, err := fmt.Fprintf(e.Stdout, "ok     %s: %s\n", line.Check, printable(line.Text))
		return err
	}
	_, err := fmt.Fprintf(e.Stdout, "WRONG  %s: %s\n       cure: %s\n", line.Check, printable(line.Error), line.Cure)
	return err
}
