package console

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
	maxIDs        = 200 // messages that a form names one by one
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

// deedOf returns the action that a form names.
func (c *console) deedOf(r *http.Request) (deed, error) {
	if !c.Actions {
		return deed{}, &pageError{http.StatusForbidden, "This console is read-only."}
	}
	all := deeds()
	i := slices.IndexFunc(all, func(d deed) bool { return d.Do == r.FormValue("do") })
	switch {
	case i < 0:
		return deed{}, &pageError{http.StatusBadRequest, "There is no such action."}
	case all[i].Do == "dry-run" && c.dryRunner == nil:
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

func (c *console) confirm(w http.ResponseWriter, r *http.Request) error {
	which, err := choose(r)
	if err != nil {
		return err
	}
	which.Before = time.Now().UTC().Format(time.RFC3339Nano) // what is poisoned while somebody thinks is not meant
	which.filter.Until = time.Now()
	return c.ask(w, r, confirmPage{Chosen: which})
}

// ask shows the confirmation.
func (c *console) ask(w http.ResponseWriter, r *http.Request, page confirmPage) error {
	d, err := c.deedOf(r)
	if err != nil {
		return err
	}
	which := page.Chosen
	page.deed = d
	var classes admin.Classes
	page.Cut, err = c.each(r.Context(), which, func(m driver.PoisonedMessage) error {
		page.Count++
		classes.Add(which.Group, m)
		if len(page.Samples) < maxSamples {
			page.Samples = append(page.Samples, admin.Summary(which.Group, m))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if d.Do == "dry-run" {
		undoes, err := c.dryRunner.Undoes(r.Context(), which.Group)
		if err != nil {
			return err
		}
		page.Lasting = !undoes
		page.Cut, page.Count = page.Cut || page.Count > maxDryRun, min(page.Count, maxDryRun)
	}
	page.Classes, page.Fields = classTable{Rows: classes.List(), Chosen: which}, which.Values()
	page.Fields.Set("do", d.Do)
	page.Fields.Set("count", strconv.Itoa(page.Count))
	return c.render(w, r, http.StatusOK, "confirm", "overview", d.Title, page)
}

// each calls visit with the messages that are chosen, and reports whether there may be more than it has read.
func (c *console) each(ctx context.Context, which chosen, visit func(driver.PoisonedMessage) error) (cut bool, err error) {
	queue := c.transport.PoisonQueue(which.Group)
	_, walks := queue.(driver.PoisonWalker)
	if len(which.IDs) > maxIDs {
		return false, &pageError{http.StatusBadRequest, fmt.Sprintf("The form names more than %d messages.", maxIDs)}
	}
	if len(which.IDs) > 0 && !walks {
		for _, id := range which.IDs {
			m, err := queue.Get(ctx, id)
			if errors.Is(err, driver.ErrNotFound) {
				continue
			}
			if err == nil {
				err = visit(m)
			}
			if err != nil {
				return false, err
			}
		}
		return false, nil
	}
	read, found := 0, 0
	err = admin.Each(ctx, queue, "", func(m driver.PoisonedMessage) error {
		if len(which.IDs) > 0 {
			if !slices.Contains(which.IDs, m.ID) {
				return nil
			}
			if err := visit(m); err != nil {
				return err
			}
			if found++; found == len(which.IDs) {
				return errEnough
			}
			return nil
		}
		if read++; read > maxScan {
			cut = true
			return errEnough
		}
		if !which.filter.Match(m) {
			return nil
		}
		return visit(m)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return cut, err
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
func (c *console) act(w http.ResponseWriter, r *http.Request) error {
	r, cancel := patient(r)
	defer cancel()
	which, err := choose(r)
	if err != nil {
		return err
	}
	d, err := c.deedOf(r)
	if err != nil {
		return err
	}
	confirmed, err := strconv.Atoi(r.PostFormValue("count"))
	if err != nil || which.Before == "" && len(which.IDs) == 0 {
		return &pageError{http.StatusBadRequest, "The action was not confirmed."}
	}
	if d.Do == "dry-run" {
		return c.dryRun(w, r, d, which)
	}
	var ids []string
	if _, err := c.each(r.Context(), which, func(m driver.PoisonedMessage) error {
		ids = append(ids, m.ID)
		return nil
	}); err != nil {
		return err
	}
	if len(ids) > confirmed {
		return c.ask(w, r, confirmPage{Chosen: which, Again: true, Was: confirmed})
	}
	queue := c.transport.PoisonQueue(which.Group)
	move := admin.Move{IDs: ids, Act: queue.Replay}
	if d.Do == "drop" {
		move.Act = queue.Drop
	}
	moved, err := move.Run(r.Context())
	c.log(r, d.Do, which.Group, moved.Done, err)
	if err != nil {
		return fmt.Errorf("%d of %d messages were %s, the rest is where it was: %w", moved.Done, len(ids), d.Did, err)
	}
	moved.Gone += confirmed - len(ids)
	return c.render(w, r, http.StatusOK, "done", "overview", d.Title, donePage{deed: d, Group: which.Group, Moved: moved})
}

// patient returns the request with the timeout of an action in place of that of a page.
func patient(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actionTimeout) // an action is not left half done
	return r.WithContext(ctx), cancel
}

// log notes an action. The next page shows what it has changed.
func (c *console) log(r *http.Request, do, group string, n int, err error) {
	c.sampler.expire(r.Context())
	c.Logger.InfoContext(r.Context(), "leat: console action", "action", do, "group", group, "messages", n, "remote", r.RemoteAddr, "error", err)
}

// dryRun tries the messages, some at once.
func (c *console) dryRun(w http.ResponseWriter, r *http.Request, d deed, which chosen) error {
	page := donePage{deed: d, Group: which.Group}
	var some []driver.PoisonedMessage
	size, n := 0, 0
	try := func() error {
		results, err := c.dryRunner.DryRun(r.Context(), which.Group, some)
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
	_, err := c.each(r.Context(), which, func(m driver.PoisonedMessage) error {
		if n++; n > maxDryRun {
			return errEnough
		}
		some, size = append(some, m), size+len(m.Message.Payload)
		if len(some) < dryRunAtOnce && size < dryRunBytes {
			return nil
		}
		return try()
	})
	if (err == nil || errors.Is(err, errEnough)) && len(some) > 0 {
		err = try()
	}
	c.log(r, d.Do, which.Group, min(n, maxDryRun), err)
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	page.Moved.Done = min(n, maxDryRun)
	return c.render(w, r, http.StatusOK, "done", "overview", d.Title, page)
}

// fingerprint tells whether a message is as it was when its form was made.
func fingerprint(m driver.PoisonedMessage) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%q %q", m.Message.Metadata, []byte(m.Message.Payload))
	return hex.EncodeToString(hash.Sum(nil))
}
