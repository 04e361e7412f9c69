package console

import (
	"errors"
	"net/http"
	"slices"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// pausePage asks whether to pause a group, or to resume it, and says afterwards what was done.
type pausePage struct {
	Group        string
	Pause        bool // false: resume
	Done         bool
	LosesWaiting bool // messages that wait are lost when the process ends
	Broken       bool // the circuit breaker has paused the group too
}

// Verb returns what the page does to the group.
func (p pausePage) Verb() string {
	if p.Pause {
		return "Pause"
	}
	return "Resume"
}

// pausing pauses and resumes the groups of a process.
type pausing struct {
	system system
	groups groupPages
	log    actionLog
}

func (p pausing) newPage(r *http.Request) (page pausePage, err error) {
	if p.system.setPaused == nil {
		return page, &pageError{http.StatusNotImplemented, "A process is paused in itself: open the console at the service's admin endpoint."}
	}
	page = pausePage{Group: r.FormValue("group")}
	if d := p.system.describe(r.Context()); d != nil {
		page.LosesWaiting = !d.Durable
		page.Broken = slices.ContainsFunc(d.Groups, func(g admin.GroupDescription) bool {
			return g.Group == page.Group && g.Degraded[driver.PausedByBreaker] != ""
		})
	}
	switch r.FormValue("do") {
	case "pause":
		page.Pause = true
	case "resume":
	default:
		return page, errNoAction
	}
	return page, nil
}

// ask asks whether to pause a group, or to resume it.
func (p pausing) ask(r *http.Request) (view, error) {
	page, err := p.newPage(r)
	if err != nil {
		return view{}, err
	}
	if g, err := p.groups.groupOf(r); err != nil {
		return view{}, err
	} else if g.Service == nil {
		return view{}, errNotHere(page.Group)
	}
	return view{"pause", "overview", page.Verb(), page}, nil
}

// set pauses a group of the process, or resumes it.
func (p pausing) set(r *http.Request) (view, error) {
	page, err := p.newPage(r)
	if err != nil {
		return view{}, err
	}
	err = p.system.setPaused(r.Context(), page.Group, page.Pause)
	p.log.record(r, r.FormValue("do"), page.Group, 0, err)
	if errors.Is(err, driver.ErrNotFound) {
		err = errNotHere(page.Group)
	}
	page.Done = true
	return view{"pause", "overview", page.Verb(), page}, err
}

func errNotHere(group string) error {
	return &pageError{http.StatusNotFound, "This process has no group " + admin.Printable(group) + "."}
}
