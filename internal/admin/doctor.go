package admin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// A Fixer is an error that says what to do about it.
type Fixer interface {
	error
	Fix() string
}

// Diagnose returns the findings of the transport, and findings about its groups.
func Diagnose(ctx context.Context, inspector driver.Inspector) []driver.Finding {
	findings := inspector.Diagnose(ctx)
	for _, f := range findings {
		if f.Err != nil {
			return findings
		}
	}
	groups, err := inspector.Groups(ctx)
	if err != nil {
		f := driver.Finding{Check: "groups", Err: err, Fix: "try again; if it fails again, give the command longer with --wait"}
		if _, found := errors.AsType[Fixer](err); found { // one of the findings has the reason, and is no fault
			f = driver.Finding{Check: "groups", Text: "not listed, so neither their consumers nor what waits in them is checked"}
		}
		return append(findings, f)
	}
	for _, g := range groups {
		findings = append(findings, diagnoseGroup(g))
	}
	return findings
}

// DiagnoseOutbox does the same as [Diagnose] for the outboxes in a database only.
func DiagnoseOutbox(ctx context.Context, inspector driver.Inspector) []driver.Finding {
	findings := inspector.Diagnose(ctx)
	groups, err := inspector.Groups(ctx)
	if err != nil {
		return findings // one of them has the reason
	}
	there := false
	for _, g := range groups {
		if IsOutbox(g) {
			there = true
			findings = append(findings, diagnoseOutbox(g))
		}
	}
	if !there {
		findings = append(findings, driver.Finding{
			Check: "outbox", Err: errors.New("no service has an outbox in these tables"),
			Fix: "start the service with this URL as LEAT_OUTBOX_URL, or correct the URL's database, schema and prefix",
		})
	}
	return findings
}

func diagnoseGroup(g driver.GroupInfo) driver.Finding {
	if IsOutbox(g) {
		return diagnoseOutbox(g)
	}
	f := driver.Finding{
		Check: "group " + g.Name,
		Text:  fmt.Sprintf("%s, %s waiting, %s poisoned", consumers(g.Consumers), Count(g.Waiting), Count(g.Poisoned)),
	}
	if g.Consumers == 0 && g.Waiting > 0 {
		f.Err = fmt.Errorf("%d messages wait, and there is no consumer", g.Waiting)
		f.Fix = "start the service of the group; if there is none, its messages wait forever"
	}
	return f
}

// diagnoseHealth returns what is wrong with a group, by the health of its process, whose admin endpoint has the URL.
func diagnoseHealth(h bus.Health, url string) driver.Finding {
	f := driver.Finding{Check: "health of " + h.Group, Text: string(h.State)}
	var fixes []string
	for _, part := range slices.Sorted(maps.Keys(h.Degraded)) {
		f.Err = errors.Join(f.Err, fmt.Errorf("%s: %s", part, h.Degraded[part]))
		fix := "see the service's log, and what it depends on"
		switch part {
		case driver.PausedByOperator:
			fix = fmt.Sprintf("run leat groups resume %s --url %s", h.Group, url)
		case driver.PausedByBreaker:
			fix = "end the outage that the last error names; the group goes on by itself once its probes, which are single messages, succeed"
		}
		if !slices.Contains(fixes, fix) {
			fixes = append(fixes, fix)
		}
	}
	f.Fix = strings.Join(fixes, "; ")
	return f
}

func consumers(n int) string {
	if n == 1 {
		return "1 consumer"
	}
	return Count(n) + " consumers"
}

// Count returns a number as text, ? if it is unknown.
func Count(n int) string {
	if n == driver.Unknown {
		return "?"
	}
	return fmt.Sprint(n)
}
