package cli

import (
	"bufio"
	"fmt"
	"strings"
)

// consent is the flag of commands that can't be undone.
type consent struct {
	Yes bool `short:"y" help:"Don't ask."`
}

// Confirm asks whether to do something, and returns nil where the answer is yes.
type Confirm func(question string) error

// confirm asks on a terminal. Where nobody can be asked, the flag must say it.
func (c consent) confirm(e *Env) Confirm {
	return func(question string) error {
		if c.Yes {
			return nil
		}
		if !isTerminal(e.Stdin) {
			return usage("%s Say --yes where nobody can be asked", question)
		}
		fmt.Fprintf(e.Stderr, "%s [y/N] ", question)
		answer, err := bufio.NewReader(e.Stdin).ReadString('\n')
		if err != nil && answer == "" {
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
