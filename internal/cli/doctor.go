package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/urlopt"
)

type doctor struct {
	connect `embed:""`
	output  `embed:""`

	OutboxURL string `env:"LEAT_OUTBOX_URL" placeholder:"URL" help:"The database of a service's outbox."`
	InboxURL  string `env:"LEAT_INBOX_URL" placeholder:"URL" help:"The database of a service's inbox."`
}

// Run prints the findings, and fails if one is an error; with --json a line is an admin.Finding.
func (c *doctor) Run(ctx context.Context, e *Env) error {
	wrong := false
	findings := slices.Concat(c.findings(ctx, e), c.outbox(ctx, e), c.inbox(ctx, e))
	for _, f := range findings {
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

// outbox checks the tables of an outbox, and whether its events are relayed.
func (c *doctor) outbox(ctx context.Context, e *Env) []driver.Finding {
	return c.database(ctx, e, "outbox", c.OutboxURL, func(ctx context.Context, t driver.Transport) []driver.Finding {
		return admin.DiagnoseOutbox(ctx, t.(driver.Inspector))
	})
}

// inbox checks the table of an inbox.
func (c *doctor) inbox(ctx context.Context, e *Env) []driver.Finding {
	return c.database(ctx, e, "inbox", c.InboxURL, func(ctx context.Context, t driver.Transport) []driver.Finding {
		return t.(admin.InboxDoctor).DiagnoseInbox(ctx)
	})
}

// database opens a database and calls examine with it, unless there is no URL. It creates no tables.
func (c *doctor) database(ctx context.Context, e *Env, what, raw string, examine func(context.Context, driver.Transport) []driver.Finding) []driver.Finding {
	if raw == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	findings, err := examineDatabase(ctx, e, raw, examine)
	if err != nil {
		findings = []driver.Finding{{Check: "open it", Err: err, Fix: fixOf(err)}}
	}
	for i := range findings {
		findings[i].Check = what + ": " + findings[i].Check
	}
	return findings
}

func examineDatabase(ctx context.Context, e *Env, raw string, examine func(context.Context, driver.Transport) []driver.Finding) ([]driver.Finding, error) {
	u, err := urlopt.Parse(raw)
	switch {
	case err != nil:
		return nil, usage("it is no URL of a database, like postgres://user@host/database: %w", err)
	case u.Scheme == "":
		return nil, usage("it is no URL of a database, like postgres://user@host/database")
	}
	q := u.Query()
	q.Set("migrate", "check")
	u.RawQuery = q.Encode()
	t, err := e.OpenDatabase(ctx, u)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close(ctx) }()
	return examine(ctx, t), nil
}

// fixOf returns the fix for a message system that can't be opened.
func fixOf(err error) string {
	fixer, ok := errors.AsType[admin.Fixer](err)
	switch {
	case ok:
		return fixer.Fix()
	case isUsage(err):
		return "correct the URL; the page of its transport lists the options"
	default:
		return "start what the URL names, or correct its host, port, user and password"
	}
}

func (c *doctor) findings(ctx context.Context, e *Env) []driver.Finding {
	s, err := c.open(ctx, e)
	if isUsage(err) {
		return []driver.Finding{{Check: "URL", Err: err, Fix: fixOf(err)}}
	}
	if err != nil {
		return []driver.Finding{{Check: "open " + e.Where, Err: err, Fix: fixOf(err)}}
	}
	defer s.close()
	inspector, err := s.inspector()
	if err != nil {
		return []driver.Finding{{Check: "open " + e.Where, Text: "it answers, and can't tell more"}}
	}
	soon, cancel := s.soon(ctx)
	defer cancel()
	return admin.Diagnose(soon, inspector)
}

func (c *doctor) write(e *Env, f driver.Finding) error {
	line := admin.DescribeFinding(f)
	if c.JSON {
		return e.line(line)
	}
	if line.OK {
		_, err := fmt.Fprintf(raw(e.Stdout), "%s     %s: %s\n", e.colored("ok", text.FgGreen), printable(line.Check), printable(line.Text))
		return err
	}
	_, err := fmt.Fprintf(raw(e.Stdout), "%s  %s: %s\n       fix: %s\n", e.colored("WRONG", text.FgRed), printable(line.Check), printable(line.Error), printable(line.Fix))
	return err
}
