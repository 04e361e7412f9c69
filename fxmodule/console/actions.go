package console

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Limits of actions.
const (
	maxDryRun     = 1000
	dryRunAtOnce  = 100     // messages in memory
	dryRunBytes   = 8 << 20 // of payloads in memory
	actionTimeout = 2 * time.Minute
	maxSamples    = 10 // messages that a confirmation names
)

// deed is an action on messages of a poison queue, in words.
type deed struct {
	Do                         string // its form value
	Title, Button, Did, Effect string
}

func deeds() []deed {
	return []deed{
		{"replay", "Replay", "Replay them", "replayed", "They go to their own group again, and leave the poison queue when they are safe there."},
		{"drop", "Drop", "Drop them for good", "dropped", "They are deleted. This can't be undone."},
		{"dry-run", "Dry run", "Try them", "tried", "The service's handlers are run with them, and no queue changes."},
	}
}

// actions replays, drops, tries and edits poisoned messages.
type actions struct {
	transport driver.Transport
	dryRunner admin.DryRunner // nil if nobody here has the handlers
	log       actionLog
}

// deedOf returns the action that a form names.
func (a actions) deedOf(r *http.Request) (deed, error) {
	all := deeds()
	i := slices.IndexFunc(all, func(d deed) bool { return d.Do == r.FormValue("do") })
	switch {
	case i < 0:
		return deed{}, errNoAction
	case all[i].Do == "dry-run" && a.dryRunner == nil:
		return deed{}, &pageError{http.StatusNotImplemented, "A dry run needs the handlers: open the console at the service's admin endpoint."}
	}
	return all[i], nil
}

// confirmPage says what an action would do, before it does.
type confirmPage struct {
	deed
	Chosen  chosen
	Fields  url.Values // of the form that does it
	Count   int
	Again   bool // more are there now than the Was that were confirmed
	Was     int
	Cut     bool
	Classes classTable
	Samples []admin.Record
	Lasting bool // not everything that a dry run does is undone
}

func (a actions) confirm(r *http.Request) (view, error) {
	which, err := choose(r)
	if err != nil {
		return view{}, err
	}
	which.Before = time.Now().UTC().Format(time.RFC3339Nano) // what is poisoned while somebody thinks is not meant
	which.filter.Until = time.Now()
	return a.ask(r, confirmPage{Chosen: which})
}

// ask shows the confirmation.
func (a actions) ask(r *http.Request, page confirmPage) (view, error) {
	d, err := a.deedOf(r)
	if err != nil {
		return view{}, err
	}
	which := page.Chosen
	page.deed = d
	var classes admin.Classes
	page.Cut, err = each(r.Context(), a.transport.PoisonQueue(which.Group), which, func(m driver.PoisonedMessage) error {
		page.Count++
		classes.Add(which.Group, m)
		if len(page.Samples) < maxSamples {
			page.Samples = append(page.Samples, admin.Summary(which.Group, m))
		}
		return nil
	})
	if err != nil {
		return view{}, err
	}
	if d.Do == "dry-run" {
		undoes, err := a.dryRunner.Undoes(r.Context(), which.Group)
		if err != nil {
			return view{}, err
		}
		page.Lasting = !undoes
		page.Cut, page.Count = page.Cut || page.Count > maxDryRun, min(page.Count, maxDryRun)
	}
	page.Classes, page.Fields = classTable{Rows: classes.List(), Chosen: which}, which.Values()
	page.Fields.Set("do", d.Do)
	page.Fields.Set("count", strconv.Itoa(page.Count))
	return view{"confirm", "overview", d.Title, page}, nil
}

// donePage is what an action has done.
type donePage struct {
	deed
	Group     string
	Moved     admin.Moved
	Prospects admin.Prospects // of a dry run
	Succeed   int
}

// act does what was confirmed. If there is more to do than was confirmed, it asks again.
func (a actions) act(r *http.Request) (view, error) {
	r, cancel := patient(r)
	defer cancel()
	which, err := choose(r)
	if err != nil {
		return view{}, err
	}
	d, err := a.deedOf(r)
	if err != nil {
		return view{}, err
	}
	confirmed, err := strconv.Atoi(r.PostFormValue("count"))
	if err != nil || which.Before == "" && len(which.IDs) == 0 {
		return view{}, errNotConfirmed
	}
	if d.Do == "dry-run" {
		return a.dryRun(r, d, which)
	}
	queue := a.transport.PoisonQueue(which.Group)
	var ids []string
	if _, err := each(r.Context(), queue, which, func(m driver.PoisonedMessage) error {
		ids = append(ids, m.ID)
		return nil
	}); err != nil {
		return view{}, err
	}
	if len(ids) > confirmed {
		return a.ask(r, confirmPage{Chosen: which, Again: true, Was: confirmed})
	}
	move := admin.Move{IDs: ids, Act: queue.Replay}
	if d.Do == "drop" {
		move.Act = queue.Drop
	}
	moved, err := move.Run(r.Context())
	a.log.record(r, d.Do, which.Group, moved.Done, err)
	if err != nil {
		return view{}, fmt.Errorf("%d of %d messages were %s, the rest is where it was: %w", moved.Done, len(ids), d.Did, err)
	}
	moved.Gone += confirmed - len(ids)
	return view{"done", "overview", d.Title, donePage{deed: d, Group: which.Group, Moved: moved}}, nil
}

// patient returns the request with the timeout of an action in place of that of a page.
func patient(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actionTimeout) // an action is not left half done
	return r.WithContext(ctx), cancel
}

// actionLog logs actions, and makes the next page show what they have changed.
type actionLog struct {
	logger  *slog.Logger
	sampler *sampler
}

// record logs an action. n is a number of messages.
func (l actionLog) record(r *http.Request, do, group string, n int, err error) {
	l.sampler.expire(r.Context())
	l.logger.InfoContext(r.Context(), "leat: console action", "action", do, "group", group, "messages", n, "remote", r.RemoteAddr, "error", err)
}

// dryRun tries the messages, some at once.
func (a actions) dryRun(r *http.Request, d deed, which chosen) (view, error) {
	page := donePage{deed: d, Group: which.Group}
	var some []driver.PoisonedMessage
	size, n := 0, 0
	try := func() error {
		results, err := a.dryRunner.DryRun(r.Context(), which.Group, some)
		if err != nil {
			return err
		}
		for i, result := range results[:min(len(results), len(some))] {
			page.Prospects.Add(which.Group, some[i].Fault.Class, result)
			if result.Error == "" {
				page.Succeed++
			}
		}
		some, size = nil, 0
		return nil
	}
	_, err := each(r.Context(), a.transport.PoisonQueue(which.Group), which, func(m driver.PoisonedMessage) error {
		if n++; n > maxDryRun {
			return errEnough
		}
		some, size = append(some, m), size+len(m.Message.Payload)
		if len(some) < dryRunAtOnce && size < dryRunBytes {
			return nil
		}
		return try()
	})
	if err == nil && len(some) > 0 {
		err = try()
	}
	a.log.record(r, d.Do, which.Group, min(n, maxDryRun), err)
	page.Moved.Done = min(n, maxDryRun)
	return view{"done", "overview", d.Title, page}, err
}
