package console

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Limits of a look into a poison queue.
const (
	pageLength = 50
	maxScan    = 10_000 // messages that one request reads
	maxIDs     = 200    // messages that a form names one by one
)

// chosen is which messages of a poison queue a request means, as the form fields say it.
type chosen struct {
	Group string
	IDs   []string

	Class, Type, Topic, Key, Text, Correlation string
	Since                                      string // how old at most, like 24h
	Before                                     string // RFC 3339
	filter                                     admin.Filter
}

// choose reads the form fields.
func choose(r *http.Request) (c chosen, err error) {
	if err := r.ParseForm(); err != nil {
		return c, &pageError{http.StatusBadRequest, "The form can't be read: " + err.Error()}
	}
	field := func(name string) string { return strings.TrimSpace(r.Form.Get(name)) }
	c = chosen{
		Group: r.Form.Get("group"), IDs: r.Form["id"],
		Class: field("class"), Type: field("type"), Topic: field("topic"), Key: r.Form.Get("key"), Text: field("text"), Correlation: r.Form.Get("correlation"),
		Since: field("since"), Before: field("before"),
	}
	c.filter = admin.Filter{
		Class: c.Class, Type: c.Type, Topic: c.Topic, Key: c.Key, Text: c.Text, CorrelationID: c.Correlation, IDs: c.IDs,
	}
	if c.Since != "" {
		d, err := time.ParseDuration(c.Since)
		if err != nil || d <= 0 {
			return c, &pageError{http.StatusBadRequest, fmt.Sprintf("The age %q is none; write it like 30m or 24h.", c.Since)}
		}
		c.filter.Since = time.Now().Add(-d)
	}
	if c.Before != "" {
		if c.filter.Until, err = time.Parse(time.RFC3339Nano, c.Before); err != nil {
			return c, &pageError{http.StatusBadRequest, fmt.Sprintf("The time %q is none.", c.Before)}
		}
	}
	return c, nil
}

// Values returns the form fields again.
func (c chosen) Values() url.Values {
	values := url.Values{"group": {c.Group}}
	for name, value := range map[string]string{
		"class": c.Class, "type": c.Type, "topic": c.Topic, "key": c.Key, "text": c.Text, "correlation": c.Correlation,
		"since": c.Since, "before": c.Before,
	} {
		if value != "" {
			values.Set(name, value)
		}
	}
	if len(c.IDs) > 0 {
		values["id"] = c.IDs
	}
	return values
}

// With returns the query string with a field changed. An empty value takes it away.
func (c chosen) With(name, value string) template.URL {
	values := c.Values()
	values.Del(name)
	if value != "" {
		values.Set(name, value)
	}
	return template.URL(values.Encode()) //nolint:gosec // it is encoded
}

// Filters reports whether it leaves something out.
func (c chosen) Filters() bool { return len(c.Values()) > 1 }

var errEnough = errors.New("enough was read")

// read calls visit with the messages of a queue from behind the one with the id after, limit at most, and reports whether
// there are more. It also ends, without an error, if visit returns errEnough.
func read(ctx context.Context, queue driver.PoisonQueue, after string, limit int, visit func(driver.PoisonedMessage) error) (more bool, err error) {
	n := 0
	err = admin.Each(ctx, queue, after, func(m driver.PoisonedMessage) error {
		if n++; n > limit {
			more = true
			return errEnough
		}
		return visit(m)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return more, err
}

// each calls visit with the messages that are chosen, and reports whether there may be more behind the maxScan first ones.
func each(ctx context.Context, queue driver.PoisonQueue, which chosen, visit func(driver.PoisonedMessage) error) (cut bool, err error) {
	if len(which.IDs) > maxIDs {
		return false, &pageError{http.StatusBadRequest, fmt.Sprintf("The form names more than %d messages.", maxIDs)}
	}
	if len(which.IDs) == 0 {
		return read(ctx, queue, "", maxScan, func(m driver.PoisonedMessage) error {
			if !which.filter.Match(m) {
				return nil
			}
			return visit(m)
		})
	}
	if _, walks := queue.(driver.PoisonWalker); walks { // it is read once, not once for each id
		found := 0
		return read(ctx, queue, "", math.MaxInt, func(m driver.PoisonedMessage) error {
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
		})
	}
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

// scan is what one look into poison queues has found.
type scan struct {
	Messages []admin.Record // the first ones that were chosen, pageLength at most
	Next     string         // the id behind which the next page begins; "" if there is none
	Classes  classTable
	Matching int  // how many messages of those that were read were chosen
	Cut      bool // not all messages were read
}

// add adds a message that was chosen.
func (s *scan) add(group string, m driver.PoisonedMessage) {
	s.Matching++
	switch n := len(s.Messages); {
	case n < pageLength:
		s.Messages = append(s.Messages, admin.Summary(group, m))
	case s.Next == "":
		s.Next = s.Messages[n-1].ID
	}
}

// newScan reads up to maxScan messages of the queue from behind the one with the id after.
func newScan(ctx context.Context, queue driver.PoisonQueue, which chosen, after string) (found scan, err error) {
	var classes admin.Classes
	ofAnyClass := which.filter
	ofAnyClass.Class = ""
	found.Cut, err = read(ctx, queue, after, maxScan, func(m driver.PoisonedMessage) error {
		if !ofAnyClass.Match(m) {
			return nil
		}
		classes.Add(which.Group, m)
		if !which.filter.Match(m) {
			return nil
		}
		found.add(which.Group, m)
		return nil
	})
	found.Classes = classTable{classes.List(), which, true}
	return found, err
}

// classTable is a table of the classes of errors of chosen messages. If no group is chosen, it names the group of each class.
type classTable struct {
	Rows   []admin.Class
	Chosen chosen
	Link   bool // each class leads to its messages
}

// Query returns the query string for the messages of a class.
func (t classTable) Query(c admin.Class) template.URL {
	t.Chosen.Group = c.Group
	return t.Chosen.With("class", c.Class)
}

// groupPage is a group and a page of its poison queue.
type groupPage struct {
	groupView
	scan
	Chosen      chosen
	After       string
	Ages        []string
	CanDryRun   bool
	Description []description
	Processes   []driver.Consumer // empty if the message system does not list them
	Unlisted    string            // why it failed to list them
}

// description is a line of a description list.
type description struct {
	Name   string
	Values []string
}

// poisonPages shows groups with their poison queues, and poisoned messages.
type poisonPages struct {
	system   system
	groups   groupPages
	traceURL string // Config.TraceURL
}

func (p poisonPages) group(r *http.Request) (view, error) {
	which, err := choose(r)
	if err != nil {
		return view{}, err
	}
	page := groupPage{Chosen: which, After: r.Form.Get("after"), Ages: []string{"10m", "1h", "24h", "168h"}, CanDryRun: p.system.dryRunner != nil}
	if page.groupView, err = p.groups.groupOf(r); err != nil {
		return view{}, err
	}
	if which.Since != "" && !slices.Contains(page.Ages, which.Since) {
		page.Ages = append(page.Ages, which.Since)
	}
	page.scan, err = newScan(r.Context(), p.system.transport.PoisonQueue(which.Group), which, page.After)
	if err != nil && !errors.Is(err, driver.ErrUnsupported) {
		return view{}, err
	}
	page.Description = describeGroup(page.groupView)
	if page.Processes, err = p.system.consumers(r.Context(), which.Group); err != nil {
		page.Unlisted = err.Error() // the rest of the page is worth as much without them
	}
	return view{"group", "overview", which.Group, page}, nil
}

func describeGroup(g groupView) []description {
	all := []description{{"Topics", shownTopics(g.Topics)}}
	if s := g.Service; s != nil {
		types := s.Types
		if len(types) == 0 {
			types = []string{"any"}
		}
		order := s.Order
		if s.Parks {
			order += "; later messages of a key wait behind a poisoned one"
		}
		all = []description{
			{"Topics", shownTopics(s.Topics)},
			{"Types", types},
			{"Order", []string{order}},
			{"Concurrency", []string{number(s.Concurrency)}},
			{"Retry", s.Settings("retry")},
		}
	}
	return slices.DeleteFunc(all, func(d description) bool { return len(d.Values) == 0 })
}

// messageOf returns the message that a request names.
func messageOf(t driver.Transport, r *http.Request) (group string, m driver.PoisonedMessage, err error) {
	group = r.FormValue("group")
	if m, err = t.PoisonQueue(group).Get(r.Context(), r.FormValue("id")); errors.Is(err, driver.ErrNotFound) {
		err = errMessageGone
	}
	return group, m, err
}

// messagePage is one message's story.
type messagePage struct {
	admin.Record
	Envelope bus.Envelope
	Payload  shownPayload
	Story    []event
	Own      []header // headers of the message
	Text     bool     // the payload can be edited

	TraceLink string // of the trace viewer; "" if there is none
}

// event is a line of a story.
type event struct {
	At         time.Time
	Name, Text string
}

// header is a header, ready to show.
type header struct{ Name, Value string }

func (p poisonPages) message(r *http.Request) (view, error) {
	group, m, err := messageOf(p.system.transport, r)
	if err != nil {
		return view{}, err
	}
	record, envelope := admin.Full(group, m), bus.EnvelopeOf(m.Message)
	headers := m.Message.Copy().Metadata
	driver.ClearFault(headers)
	page := messagePage{Record: record, Envelope: envelope, Payload: showPayload(m.Message.Payload), Text: len(record.RawData) == 0, TraceLink: traceLink(p.traceURL, record.TraceID)}
	for name, value := range headers {
		page.Own = append(page.Own, header{admin.Printable(name), admin.Printable(value)})
	}
	slices.SortFunc(page.Own, func(a, b header) int { return strings.Compare(a.Name, b.Name) })
	f := m.Fault
	for _, e := range []event{
		{envelope.Time, "Published", "by " + envelope.Source},
		{f.FirstAt, "Received", "by the group for the first time"},
		{f.FailedAt, "Failed", "for the first time"},
		{f.At, "Poisoned", fmt.Sprintf("after %s and %s", plural(f.Attempts, "delivery", "deliveries"), plural(f.Tries, "try", "tries"))},
	} {
		if !e.At.IsZero() {
			page.Story = append(page.Story, e)
		}
	}
	return view{"message", "overview", "Message " + record.EventID, page}, nil
}

// plural returns a number of things in words.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + many
}

// payload sends the payload byte for byte, as a file that no browser runs.
func (p poisonPages) payload(w http.ResponseWriter, r *http.Request) error {
	_, m, err := messageOf(p.system.transport, r)
	if err != nil {
		return err
	}
	attach(w, "application/octet-stream", "payload")
	_, _ = w.Write(m.Message.Payload)
	return nil
}
