package console

import (
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// groupView is a group for people.
type groupView struct {
	driver.GroupInfo
	Service *admin.GroupDescription // nil if nobody here knows it
	Earlier *admin.GroupDescription // Service of some minutes before
	Outbox  bool
	Points  []point

	Pausable  bool // the page may pause and resume it
	Removable bool // the page may delete it
}

// viewsOf returns the groups with what the service knows of them.
func viewsOf(s sample, points map[string][]point) []groupView {
	known, earlier := descriptions(s.service), descriptions(s.earlier)
	views := make([]groupView, len(s.groups))
	for i, g := range s.groups {
		views[i] = groupView{GroupInfo: g, Service: known[g.Name], Earlier: earlier[g.Name], Outbox: admin.IsOutbox(g), Points: slices.Clone(points[g.Name])}
	}
	return views
}

// chip is a state in a word. Kind is ok, warn, bad or off: it chooses the colour and the sign.
type chip struct{ Kind, Text string }

// State returns what the group does.
func (g groupView) State() chip {
	if g.Service != nil {
		switch {
		case admin.PausedBy(g.Service.Degraded) != "":
			return chip{"bad", "paused"}
		case g.Service.State == bus.Running:
			return chip{"ok", "running"}
		case g.Service.State == bus.Degraded:
			return chip{"warn", "degraded"}
		default:
			return chip{"off", string(g.Service.State)}
		}
	}
	switch {
	case g.Consumers == 0 && g.Waiting > 0:
		return chip{"bad", "nobody consumes"}
	case g.Consumers == 0:
		return chip{"off", "no consumer"}
	default:
		return chip{"ok", "consuming"}
	}
}

// Reason is why a part of a group does not work.
type Reason struct{ Part, Text string }

// Reasons returns what is wrong with the group, by part.
func (g groupView) Reasons() (all []Reason) {
	if g.Service == nil {
		return nil
	}
	for _, part := range slices.Sorted(maps.Keys(g.Service.Degraded)) {
		all = append(all, Reason{part, g.Service.Degraded[part]})
	}
	return all
}

// Held reports whether an operator has paused the group in the process that is shown.
func (g groupView) Held() bool {
	return g.Service != nil && g.Service.Degraded[driver.PausedByOperator] != ""
}

// NeedsAttention reports whether somebody should look at the group.
func (g groupView) NeedsAttention() bool {
	state := g.State().Kind
	return state == "bad" || state == "warn" || g.Poisoned > 0 || g.Parked > 0
}

// Handler returns the handler's name: the last part of the group's.
func (g groupView) Handler() string { return g.Name[strings.LastIndexByte(g.Name, '.')+1:] }

// PerSecond returns how many deliveries were handled a second, lately, in words; "" if that is unknown.
func (g groupView) PerSecond() string {
	if g.Service == nil || len(g.Points) == 0 || g.Points[len(g.Points)-1].perSecond < 0 {
		return ""
	}
	return short(g.Points[len(g.Points)-1].perSecond)
}

// Latency returns p50 and p99 of the time of a delivery in the last minutes, in words; nothing if that is unknown.
func (g groupView) Latency() []string {
	if g.Service == nil || g.Earlier == nil {
		return nil
	}
	before := g.Earlier.Durations
	if g.Service.Counts.Handled < g.Earlier.Counts.Handled { // the process was restarted, so all of its counts are of the last minutes
		before = nil
	}
	p50, p99 := quantiles(before, g.Service.Durations)
	if p50 < 0 {
		return nil
	}
	return []string{microseconds(p50), microseconds(p99)}
}

// WaitingPlot is what has waited in the last minutes.
func (g groupView) WaitingPlot() figure {
	return newFigure("Waiting", g.Points, short, series{value: func(p point) float64 { return float64(p.waiting) }})
}

// Plots are the last minutes. Those of which nothing is known are left out: message systems without the age of a message,
// and what only the service's process counts.
func (g groupView) Plots() []figure {
	all := []figure{
		g.WaitingPlot(),
		newFigure("Poisoned", g.Points, short, series{value: func(p point) float64 { return float64(p.poisoned) }}),
	}
	if g.showsAge() {
		all = append(all, newFigure("Oldest message", g.Points, seconds, series{value: func(p point) float64 { return p.oldest }}))
	}
	if g.Service != nil {
		all = append(all,
			newFigure("Handled a second, here", g.Points, short, series{value: func(p point) float64 { return p.perSecond }}),
			newFigure("Time of a delivery, here", g.Points, microseconds,
				series{"p50", "p50", func(p point) float64 { return p.p50 }}, series{"p99", "p99", func(p point) float64 { return p.p99 }}))
	}
	return all
}

// showsAge reports whether the message system knows the age of messages. One that does not has no age while messages wait.
func (g groupView) showsAge() bool {
	ages := slices.ContainsFunc(g.Points, func(p point) bool { return p.oldest > 0 })
	return ages || !slices.ContainsFunc(g.Points, func(p point) bool { return p.oldest < 0 })
}

// overviewPage is all groups.
type overviewPage struct {
	Groups   []groupView
	Outboxes []groupView
	Service  *admin.Description
	Flow     template.HTML

	Attention, Waiting, Delayed, InFlight, Poisoned int
}

// groupPages shows the groups.
type groupPages struct {
	sampler         *sampler
	pauses, removes bool // the console may pause groups, or delete them
}

func (p groupPages) overviewPage(r *http.Request) (page overviewPage, err error) {
	err = p.sampler.now(r.Context(), func(s sample, points map[string][]point) {
		page.Service = s.service
		for _, g := range viewsOf(s, points) {
			if g.NeedsAttention() {
				page.Attention++
			}
			page.Poisoned += max(g.Poisoned, 0)
			if g.Outbox {
				page.Outboxes = append(page.Outboxes, g)
				continue
			}
			page.Groups = append(page.Groups, g)
			page.Waiting += max(g.Waiting, 0)
			page.Delayed += max(g.Delayed, 0)
			page.InFlight += max(g.InFlight, 0)
		}
	})
	page.Flow = flow(page.Groups)
	return page, err
}

// overview returns the maker of the page that shows all groups in a template.
func (p groupPages) overview(name, title string) func(*http.Request) (view, error) {
	return func(r *http.Request) (view, error) {
		page, err := p.overviewPage(r)
		return view{name, name, title, page}, err
	}
}

// groupOf returns the group that a request names.
func (p groupPages) groupOf(r *http.Request) (found groupView, err error) {
	name := r.FormValue("group")
	err = p.sampler.now(r.Context(), func(s sample, points map[string][]point) {
		for _, g := range viewsOf(s, points) {
			if g.Name == name {
				found = g
				found.Pausable = p.pauses && g.Service != nil
				found.Removable = p.removes && !g.Outbox && g.Consumers == 0
			}
		}
	})
	if err == nil && found.Name == "" {
		err = &pageError{http.StatusNotFound, "There is no group " + admin.Printable(name) + "."}
	}
	return found, err
}

// graph sends the Mermaid flowchart of the groups as a file.
func (p groupPages) graph(w http.ResponseWriter, r *http.Request) error {
	var text string
	err := p.sampler.now(r.Context(), func(s sample, _ map[string][]point) { text = mermaid(s.groups) })
	if err != nil {
		return err
	}
	attach(w, "text/plain; charset=utf-8", "wiring.mmd")
	_, _ = fmt.Fprint(w, text)
	return nil
}
