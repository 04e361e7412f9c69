package cli

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress is a progress bar on a terminal. Without a terminal it shows nothing.
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
		_ = p.bar.Set(done) // fails if the terminal is closed
	}
}

func (p progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
