package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type poisonEdit struct {
	connect `embed:""`

	Group  string            `placeholder:"GROUP" help:"Its group, if the id is in more than one."`
	Data   string            `placeholder:"DATA" help:"The new payload; @file reads a file, @- the standard input. Without it and --header, the editor is opened."`
	Header map[string]string `placeholder:"NAME=VALUE" mapsep:"none" help:"A header to set, or to remove with an empty value; may be repeated."`
	Replay bool              `help:"Replay the message afterwards."`
	ID     string            `arg:"" name:"id" help:"Its id in the queue, or the event's id."`
}

// Run changes the message in the queue.
func (c *poisonEdit) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		queue, m, err := named(c.Group).one(ctx, s, c.ID)
		if err != nil {
			return err
		}
		changed, err := c.change(ctx, s, m)
		if err != nil {
			return err
		}
		if bytes.Equal(changed.Message.Payload, m.Message.Payload) && maps.Equal(changed.Message.Metadata, m.Message.Metadata) {
			_, err = fmt.Fprintln(s.Stdout, "nothing changed")
			return err
		}
		if err := queue.queue.Put(ctx, changed); err != nil {
			return err
		}
		if !c.Replay {
			_, err = fmt.Fprintf(s.Stdout, "changed %s\n", m.ID)
			return err
		}
		if _, err := queue.queue.Replay(ctx, m.ID); err != nil {
			return fmt.Errorf("changed, and not replayed: %w", err)
		}
		_, err = fmt.Fprintf(s.Stdout, "changed and replayed %s\n", m.ID)
		return err
	})
}

func (c *poisonEdit) change(ctx context.Context, s *session, m driver.PoisonedMessage) (changed driver.PoisonedMessage, err error) {
	payload := []byte(m.Message.Payload)
	switch {
	case c.Data != "":
		payload, err = s.value(c.Data)
	case len(c.Header) == 0:
		payload, err = s.editor(ctx, payload)
	}
	if err != nil {
		return m, err
	}
	if changed, err = admin.Edit(m, payload, c.Header); err != nil {
		err = &UsageError{err}
	}
	return changed, err
}

// editor opens a payload in the user's editor and returns the result.
func (s *session) editor(ctx context.Context, payload []byte) ([]byte, error) {
	program := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"))
	if program == "" {
		return nil, usage("no editor is set; set EDITOR, or give --data or --header")
	}
	dir, err := os.MkdirTemp("", "leat-edit-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	name := filepath.Join(dir, "payload.json")
	if err := os.WriteFile(name, payload, 0o600); err != nil {
		return nil, err
	}
	words := strings.Fields(program)
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], name)...) //nolint:gosec // the user's own editor
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("editor %s", program), err)
	}
	edited, err := os.ReadFile(name)
	if !bytes.HasSuffix(payload, []byte("\n")) {
		edited = bytes.TrimSuffix(edited, []byte("\n")) // editors add it
	}
	return edited, err
}
