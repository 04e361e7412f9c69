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

// removal deletes groups that nobody consumes.
type removal struct {
	remover driver.GroupRemover // nil if groups can't be deleted
	groups  groupPages
	log     actionLog
}

func (d removal) newPage(r *http.Request) (page removePage, err error) {
	if page.groupView, err = d.groups.groupOf(r); err != nil {
		return page, err
	}
	if page.Consumers > 0 {
		return page, errConsumed(page.Name)
	}
	if !page.Removable {
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

// ask asks whether to delete a group, and says which messages are lost.
func (d removal) ask(r *http.Request) (view, error) {
	page, err := d.newPage(r)
	return view{"remove", "overview", "Delete a group", page}, err
}

// remove deletes a group. If more messages would be lost than was confirmed, it asks again.
func (d removal) remove(r *http.Request) (view, error) {
	r, cancel := patient(r)
	defer cancel()
	confirmed, err := strconv.Atoi(r.PostFormValue("lost"))
	if err != nil {
		return view{}, errNotConfirmed
	}
	d.groups.sampler.expire(r.Context()) // what was counted a second ago may be less
	page, err := d.newPage(r)
	if err != nil {
		return view{}, err
	}
	if page.Lost > confirmed {
		page.Again = true
		return view{"remove", "overview", "Delete a group", page}, nil
	}
	err = d.remover.RemoveGroup(r.Context(), page.Name)
	d.log.record(r, "delete group", page.Name, page.Lost, err)
	if errors.Is(err, driver.ErrConsumed) {
		err = errConsumed(page.Name)
	}
	page.Done = true
	return view{"remove", "overview", "Delete a group", page}, err
}
