package console

import (
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// mermaid returns topics and the groups that subscribe to them as a Mermaid flowchart, which documents and wikis draw.
func mermaid(groups []driver.GroupInfo) string {
	label := strings.NewReplacer(`#`, "#35;", `"`, "#quot;", "<", "#lt;", ">", "#gt;", "`", "#96;")
	var nodes, edges strings.Builder
	var topics []string
	for i, g := range groups {
		if admin.IsOutbox(g) {
			continue
		}
		fmt.Fprintf(&nodes, "  g%d[\"%s\"]\n", i, label.Replace(admin.Printable(g.Name)))
		for _, topic := range shownTopics(g.Topics) {
			t := slices.Index(topics, topic)
			if t < 0 {
				t = len(topics)
				topics = append(topics, topic)
				fmt.Fprintf(&nodes, "  t%d([\"%s\"])\n", t, label.Replace(admin.Printable(topic)))
			}
			fmt.Fprintf(&edges, "  t%d --> g%d\n", t, i)
		}
	}
	return "flowchart LR\n" + nodes.String() + edges.String()
}
