package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// graph sends topics and the groups that subscribe to them as a Mermaid flowchart, which documents and wikis draw.
func (c *console) graph(w http.ResponseWriter, r *http.Request) error {
	var text string
	err := c.sampler.now(r.Context(), func(s sample, _ map[string][]point) { text = mermaid(s.groups) })
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="wiring.mmd"`)
	_, _ = fmt.Fprint(w, text)
	return nil
}

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

// wiringJSON sends what the service is made of, as leat describe --json does.
func (c *console) wiringJSON(w http.ResponseWriter, r *http.Request) error {
	d := c.describe(r.Context())
	if d == nil {
		return &pageError{http.StatusNotFound, "The wiring is known in the service's process only."}
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Disposition", `attachment; filename="wiring.json"`)
	_, _ = w.Write(text)
	return nil
}
