package console

import (
	"errors"
	"net/http"
	"strings"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// maxClasses bounds the classes of errors that one page shows.
const maxClasses = 200

// findPage is the poisoned messages of all groups, or those in which a text was found.
type findPage struct {
	scan
	Find        string
	MoreClasses int      // that are not shown
	Unread      []string // groups whose poison queues could not be read
}

// find shows the poisoned messages of all groups by class of error, and finds one by what an operator has of it.
func (p poisonPages) find(r *http.Request) (view, error) {
	page := findPage{Find: strings.TrimSpace(r.FormValue("find"))}
	var groups []string
	err := p.groups.sampler.now(r.Context(), func(s sample, _ map[string][]point) {
		for _, g := range s.groups {
			if g.Poisoned != 0 { // it may be unknown
				groups = append(groups, g.Name)
			}
		}
	})
	if err != nil {
		return view{}, err
	}
	var classes admin.Classes
	filter := admin.Filter{Text: page.Find}
	left := maxScan
	for _, group := range groups {
		page.Cut, err = read(r.Context(), p.system.transport.PoisonQueue(group), "", left, func(m driver.PoisonedMessage) error {
			left--
			if page.Find != "" && !filter.Match(m) && !named(page.Find, m) {
				return nil
			}
			classes.Add(group, m)
			page.add(group, m)
			return nil
		})
		if page.Cut {
			break
		}
		if err != nil && !errors.Is(err, driver.ErrUnsupported) && !errors.Is(err, driver.ErrNotFound) {
			page.Unread = append(page.Unread, group)
		}
	}
	all := classes.List()
	page.Classes = classTable{Rows: all[:min(len(all), maxClasses)], Link: true}
	page.MoreClasses = len(all) - len(page.Classes.Rows)
	return view{"find", "find", "Poisoned messages", page}, nil
}

// named reports whether a text is a name of the message: its key, or the id of its event, of its trace, or of what began it.
func named(text string, m driver.PoisonedMessage) bool {
	e := bus.EnvelopeOf(m.Message)
	return text == driver.PartitionKey(m.Message) || text == driver.MessageID(m.Message) || text == e.CorrelationID ||
		text == driver.TraceID(e.TraceParent) || text == m.Fault.TraceID
}
