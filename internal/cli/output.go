package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/leatbus/leat/internal/admin"
)

// output has the flags for a command's results.
type output struct {
	JSON bool `name:"json" help:"Write JSON lines, for scripts."`
}

// line writes one result in JSON.
func (e *Env) line(result any) error {
	encoder := json.NewEncoder(raw(e.Stdout))
	encoder.SetEscapeHTML(false)
	return encoder.Encode(result)
}

// ago returns how long ago a time was.
func ago(t *time.Time) string {
	if t == nil {
		return "-"
	}
	d := time.Since(*t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(int(d.Seconds()), 0))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

func shown(n int) string { return admin.Count(n) }

// messages returns a number of messages in words.
func messages(n int) string {
	if n == 1 {
		return "1 message"
	}
	return humanize.Comma(int64(n)) + " messages"
}
