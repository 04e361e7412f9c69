package cli

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress is a bar on a terminal that shows how far a move is. Elsewhere it is nothing.
type progress struct{ bar *progressbar.ProgressBar }

func (e *Env) progress(what string, total int) progress {
	if !isTerminal(e.Stderr) || os.Getenv("TERM") == "dumb" || total == 0 {
		return progress{}
	}
	return progress{progressbar.NewOptions(total,
		progressbar.OptionSetWriter(raw(e.Stderr)),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("messages"),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	)}
}

func (p progress) show(done int) {
	if p.bar != nil {
		_ = p.bar.Set(done) // a terminal that is gone is of no interest
	}
}

func (p progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
