package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// consent has the flag of commands that can't be undone.
type consent struct {
	Yes bool `short:"y" help:"Don't ask for confirmation."`
}

// A Confirm asks whether to do something. It returns nil if the answer is yes.
type Confirm func(question string) error

// confirm asks on a terminal. Without a terminal, the flag is required.
func (c consent) confirm(ctx context.Context, e *Env) Confirm {
	return func(question string) error {
		if c.Yes {
			return nil
		}
		if !isTerminal(e.Stdin) {
			return usage("%s Pass --yes if there is no terminal", question)
		}
		fmt.Fprintf(e.Stderr, "%s [y/N] ", question)
		answer, err := readLine(ctx, e.Stdin)
		switch {
		case errors.Is(err, io.EOF): // Ctrl-D, also behind a line that was not finished
			fmt.Fprintln(e.Stderr)
			answer = ""
		case err != nil:
			fmt.Fprintln(e.Stderr)
			return fmt.Errorf("no answer: %w", err)
		}
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
			return nil
		default:
			return usage("not confirmed; nothing was done")
		}
	}
}

// readLine returns a line, or an error if ctx ends first. The read then continues until the process ends.
func readLine(ctx context.Context, from io.Reader) (string, error) {
	type result struct {
		line string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		line, err := bufio.NewReader(from).ReadString('\n')
		read <- result{line, err}
	}()
	select {
	case r := <-read:
		return r.line, r.err
	case <-ctx.Done():
		return "", errInterrupted
	}
}
