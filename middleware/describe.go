package middleware

import (
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus"
)

// A StepInfo describes a step of one handler's stack, also in JSON.
type StepInfo struct {
	Step     string   `json:"step"`
	Settings []string `json:"settings,omitempty"` // for people; nil if the step has none
}

// Describe returns the steps of a handler's stack, outermost first, with their settings for that handler.
func (s Stack) Describe(h bus.Handler) []StepInfo {
	infos := make([]StepInfo, len(s.steps))
	for i, step := range s.steps {
		infos[i].Step = step.Name
		if step.Settings != nil {
			infos[i].Settings = step.Settings(h)
		}
	}
	return infos
}

func (c Config) dedupSettings(h bus.Handler) []string {
	mode := h.Dedup
	if mode == bus.DedupDefault {
		mode = c.Dedup.Mode
	}
	switch mode {
	case bus.DedupOff:
		return []string{"off"}
	case bus.DedupClosed:
		return []string{"waits while the store is unavailable"}
	default:
		return []string{"continues without the store while it is unavailable"}
	}
}

// retrySettings returns the retry schedule, and how many classes of errors have another one.
func (c Config) retrySettings(h bus.Handler) []string {
	policy := c.policy(h).WithDefaults()
	settings := []string{policy.String(), fmt.Sprintf("poisoned after %d crashes", policy.CrashLimit)}
	if n := len(h.RetryOn); n > 0 {
		settings = append(settings, fmt.Sprintf("%d rules for single errors", n))
	}
	return settings
}

func (c Config) timeoutSettings(h bus.Handler) []string {
	if d := c.timeoutOf(h); d >= 0 {
		return []string{d.String()}
	}
	return []string{"none"}
}

// versionSettings returns the upcasters of the handler's events, and how long newer versions wait.
func (c Config) versionSettings(h bus.Handler) (settings []string) {
	if len(h.Types) == 0 {
		return []string{"takes any type"}
	}
	for _, u := range c.Upcasters {
		if slices.ContainsFunc(h.Types, func(t bus.Type) bool { return t.Name == u.From.Name }) {
			settings = append(settings, fmt.Sprintf("%s → %s", u.From, u.To))
		}
	}
	slices.SortFunc(settings, strings.Compare)
	if c.HoldNewer > 0 {
		return append(settings, "newer versions wait for "+c.HoldNewer.String())
	}
	return append(settings, "newer versions are poisoned")
}
