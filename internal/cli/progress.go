package cli

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// progress is a line on a terminal that tells how far a move is. Elsewhere it is nothing.
type progress struct {
	e     *Env
	what  string
	total int
	began time.Time
	drawn time.Time
}

const (
	drawEvery = 100 * time.Millisecond
	barWidth  = 30
)

func (e *Env) progress(what string, total int) *progress {
	if !isTerminal(e.Stderr) || os.Getenv("TERM") == "dumb" || total == 0 {
		return nil
	}
	return &progress{e: e, what: what, total: total, began: time.Now()}
}

func (p *progress) show(done int) {
	if p == nil || done < p.total && time.Since(p.drawn) < drawEvery {
		return
	}
	p.drawn = time.Now()
	full := min(done*barWidth/p.total, barWidth)
	rate := float64(done) / max(time.Since(p.began).Seconds(), 0.001)
	fmt.Fprintf(raw(p.e.Stderr), "\r%s [%s%s] %d of %d, %.0f/s ", p.what,
		strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), done, p.total, rate)
}

func (p *progress) end() {
	if p != nil {
		fmt.Fprint(raw(p.e.Stderr), "\r\x1b[K")
	}
}
