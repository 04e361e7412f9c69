package console

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// removePage asks whether to delete a group that nobody consumes, and says afterwards that it is deleted.
type removePage struct {
	groupView
	Lost  int  // messages, as far as they are known
	Least bool // there may be more: a count is unknown
	Again bool
	Done  bool
}

// removable reports whether a console with actions may delete the group.
func (c *console) removable(g groupView) bool {
	_, removes := c.transport.(driver.GroupRemover)
	return c.Actions && removes && c.transport.Capabilities().Durable && !g.Outbox && g.Consumers == 0
}

func (c *console) newRemovePage(r *http.Request) (page removePage, err error) {
	if !c.Actions {
		return page, &pageError{http.StatusForbidden, "This console is read-only."}
	}
	if page.groupView, err = c.groupNow(r); err != nil {
		return page, err
	}
	if page.Consumers > 0 {
		return page, errConsumed(page.Name)
	}
	if !c.removable(page.groupView) {
		return page, &pageError{http.StatusNotImplemented, "This group can't be deleted here. Groups in memory end with the service's process, and an outbox is no group of a handler."}
	}
	for _, n := range []int{page.Waiting, page.Delayed, page.Parked, page.Poisoned, page.InFlight} {
		page.Lost += max(n, 0)
		page.Least = page.Least || n < 0
	}
	return page, nil
}

func errConsumed(group string) error {
	return &pageError{http.StatusConflict, "A process consumes the group " + admin.Printable(group) + ". Nothing was deleted; stop the process first."}
}

// askRemove asks whether to delete a group, and says which messages are lost.
func (c *console) askRemove(w http.ResponseWriter, r *http.Request) error {
	page, err := c.newRemovePage(r)
	if err != nil {
		return err
	}
	return c.render(w, r, http.StatusOK, "remove", "overview", "Delete a group", page)
}

// remove deletes a group. If more messages would be lost than was confirmed, it asks again.
func (c *console) remove(w http.ResponseWriter, r *http.Request) error {
	r, cancel := patient(r)
	defer cancel()
	confirmed, err := strconv.Atoi(r.PostFormValue("lost"))
	if err != nil {
		return &pageError{http.StatusBadRequest, "The action was not confirmed."}
	}
	c.sampler.expire(r.Context()) // what was counted a second ago may be less
	page, err := c.newRemovePage(r)
	if err != nil {
		return err
	}
	if page.Lost > confirmed {
		page.Again = true
		return c.render(w, r, http.StatusOK, "remove", "overview", "Delete a group", page)
	}
	err = c.transport.(driver.GroupRemover).RemoveGroup(r.Context(), page.Name)
	c.log(r, "delete group", page.Name, page.Lost, err)
	if errors.Is(err, driver.ErrConsumed) {
		return errConsumed(page.Name)
	}
	if err != nil {
		return err
	}
	page.Done = true
	return c.render(w, r, http.StatusOK, "remove", "overview", "Delete a group", page)
}
