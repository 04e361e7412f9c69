package console

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// pauser is a process whose groups can be paused.
type pauser interface {
	SetPaused(ctx context.Context, group string, paused bool) error
}

// localPauser is this process.
type localPauser struct{ bus *bus.Bus }

// SetPaused pauses a group of the bus, or resumes it.
func (p localPauser) SetPaused(_ context.Context, group string, paused bool) error {
	return p.bus.SetPaused(group, paused)
}

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

func (c *console) newPausePage(r *http.Request) (page pausePage, err error) {
	switch {
	case !c.Actions:
		return page, &pageError{http.StatusForbidden, "This console is read-only."}
	case c.pauser == nil:
		return page, &pageError{http.StatusNotImplemented, "A process is paused in itself: open the console at the service's admin endpoint."}
	}
	page = pausePage{Group: r.FormValue("group")}
	if d := c.describe(r.Context()); d != nil {
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
		return page, &pageError{http.StatusBadRequest, "There is no such action."}
	}
	return page, nil
}

// askPause asks whether to pause a group, or to resume it.
func (c *console) askPause(w http.ResponseWriter, r *http.Request) error {
	page, err := c.newPausePage(r)
	if err != nil {
		return err
	}
	if g, err := c.groupNow(r); err != nil {
		return err
	} else if g.Service == nil {
		return errNotHere(page.Group)
	}
	return c.render(w, r, http.StatusOK, "pause", "overview", page.Verb(), page)
}

// setPaused pauses a group of the process, or resumes it.
func (c *console) setPaused(w http.ResponseWriter, r *http.Request) error {
	page, err := c.newPausePage(r)
	if err != nil {
		return err
	}
	err = c.pauser.SetPaused(r.Context(), page.Group, page.Pause)
	c.log(r, r.FormValue("do"), page.Group, 0, err)
	if errors.Is(err, driver.ErrNotFound) {
		return errNotHere(page.Group)
	}
	if err != nil {
		return err
	}
	page.Done = true
	return c.render(w, r, http.StatusOK, "pause", "overview", page.Verb(), page)
}

func errNotHere(group string) error {
	return &pageError{http.StatusNotFound, "This process has no group " + admin.Printable(group) + "."}
}
