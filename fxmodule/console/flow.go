package console

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"github.com/leatbus/leat/internal/admin"
)

// maxFlow bounds the diagram, in topics and in groups: the table below it has all.
const maxFlow = 24

// Measures of the diagram, in its own units.
const (
	flowWidth = 960
	flowRow   = 34
	flowBox   = 340 // width of a box
	flowRight = flowWidth - flowBox
)

// flow draws topics, the groups that ask for them, and the lines between them. It is drawn for the eye only: the table of
// groups says the same.
func flow(groups []groupView) template.HTML {
	groups = groups[:min(len(groups), maxFlow)]
	groupsOf := make(map[string][]int) // by topic
	for i, g := range groups {
		for _, topic := range shownTopics(g.Topics) {
			groupsOf[topic] = append(groupsOf[topic], i)
		}
	}
	var topics []string
	for topic := range groupsOf {
		topics = append(topics, topic)
	}
	if len(topics) == 0 {
		return ""
	}
	// In the order of their first group, so that few lines cross.
	slices.SortFunc(topics, func(a, b string) int { return cmp.Or(cmp.Compare(groupsOf[a][0], groupsOf[b][0]), cmp.Compare(a, b)) })
	topics = topics[:min(len(topics), maxFlow)]
	rows := max(len(topics), len(groups))
	at := func(i, n int) int { return flowRow*i + flowRow*(rows-n)/2 + flowRow/2 }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="flow" viewBox="0 0 %d %d" aria-hidden="true" focusable="false">`, flowWidth, rows*flowRow)
	for i, topic := range topics {
		for _, g := range groupsOf[topic] {
			from, to := at(i, len(topics)), at(g, len(groups))
			fmt.Fprintf(&b, `<path class="edge %s" d="M%d %d C%d %d %d %d %d %d"/>`, groups[g].State().Kind,
				flowBox, from, flowBox+130, from, flowRight-130, to, flowRight, to)
		}
	}
	for i, topic := range topics {
		box(&b, "topic", 0, at(i, len(topics)), topic, "")
	}
	for i, g := range groups {
		aside := count(g.Waiting) + " waiting"
		if rate := g.PerSecond(); rate != "" {
			aside = rate + "/s"
		}
		if g.Poisoned > 0 {
			aside = count(g.Poisoned) + " poisoned"
		}
		fmt.Fprintf(&b, `<a href="group?%s" tabindex="-1">`, template.HTMLEscapeString(string(query("group", g.Name))))
		box(&b, "node "+g.State().Kind, flowRight, at(i, len(groups)), g.Name, aside)
		b.WriteString(`</a>`)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // every name in it is escaped
}

// maxFlowName is how many letters of a name fit into a box beside what stands at its end.
const maxFlowName = 40

func box(b *strings.Builder, class string, x, y int, name, aside string) {
	room := maxFlowName - len(aside)
	text := []rune(admin.Printable(name))
	if len(text) > room {
		text = append(text[:room-1], '…')
	}
	fmt.Fprintf(b, `<g class="%s"><rect x="%d" y="%d" width="%d" height="26" rx="6"/><text x="%d" y="%d">%s</text>`,
		class, x, y-13, flowBox, x+12, y+4, template.HTMLEscapeString(string(text)))
	if aside != "" {
		fmt.Fprintf(b, `<text class="aside" x="%d" y="%d" text-anchor="end">%s</text>`, x+flowBox-12, y+4, template.HTMLEscapeString(aside))
	}
	b.WriteString(`</g>`)
}
