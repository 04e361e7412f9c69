package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type poisonExport struct {
	connect `embed:""`
	filter  `embed:""`

	Output string `short:"o" placeholder:"FILE" help:"The file to write, instead of the standard output."`
}

// Run writes full records, and leaves the messages where they are.
func (c *poisonExport) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		out := raw(s.Stdout)
		if c.Output != "" {
			file, err := os.OpenFile(c.Output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return &UsageError{err}
			}
			defer func() { _ = file.Close() }()
			out = file
		}
		n, err := c.write(ctx, s, out)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.Stderr, "exported %s\n", messages(n))
		return err
	})
}

func (c *poisonExport) write(ctx context.Context, s *session, out io.Writer) (n int, err error) {
	buffered := bufio.NewWriter(out)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false)
	_, err = c.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
		n++
		return encoder.Encode(admin.Full(queue.group, m))
	})
	if err != nil {
		return n, err
	}
	return n, buffered.Flush()
}
