package monitoring

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// object is an object in JSON. Its keys are written in order, so that the same table makes the same file.
type object = map[string]any

const (
	panelWidth, panelHeight = 8, 8
	panelsInARow            = 3
)

// Dashboard returns Grafana's JSON of a dashboard with a panel for each of leat's own metrics, a row for each section.
func Dashboard(metrics []Metric) ([]byte, error) {
	var panels []object
	y, inRow, last := 0, 0, ""
	for _, m := range metrics {
		if strings.HasPrefix(m.Name, "messaging_") {
			continue
		}
		if m.Section != last {
			if inRow > 0 {
				y += panelHeight
			}
			panels = append(panels, object{
				"type": "row", "id": len(panels) + 1, "title": rowTitle(m.Section), "collapsed": false, "panels": []object{},
				"gridPos": object{"x": 0, "y": y, "w": panelWidth * panelsInARow, "h": 1},
			})
			y, inRow, last = y+1, 0, m.Section
		}
		panels = append(panels, panel(m, len(panels)+1, inRow*panelWidth, y))
		if inRow++; inRow == panelsInARow {
			y, inRow = y+panelHeight, 0
		}
	}
	text, err := json.MarshalIndent(object{
		"title": "leat", "uid": "leat", "schemaVersion": 39, "editable": true, "tags": []string{"leat"}, "refresh": "30s",
		"time":       object{"from": "now-3h", "to": "now"},
		"templating": object{"list": variables()},
		"panels":     panels,
	}, "", "  ")
	return append(text, '\n'), err
}

func rowTitle(section string) string {
	switch section {
	case "New":
		return "Messages on their way"
	case "Health":
		return "Groups and transport"
	case "Groups":
		return "What waits in the message system"
	default:
		return section
	}
}

func variables() []object {
	return []object{
		{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
		{
			"name": "job", "type": "query", "label": "Job", "multi": true, "includeAll": true, "allValue": ".*", "refresh": 2,
			"datasource": source(), "query": object{"query": "label_values(leat_deliveries_total, job)", "refId": "job"},
			"current": object{"text": "All", "value": "$__all"},
		},
		{
			"name": "group", "type": "query", "label": "Group", "multi": true, "includeAll": true, "allValue": ".*", "refresh": 2,
			"datasource": source(), "query": object{"query": `label_values(leat_deliveries_total{job=~"$job"}, group)`, "refId": "group"},
			"current": object{"text": "All", "value": "$__all"},
		},
	}
}

func source() object { return object{"type": "prometheus", "uid": "${datasource}"} }

func panel(m Metric, id, x, y int) object {
	unit := "short"
	switch {
	case strings.HasSuffix(m.Name, "_seconds"):
		unit = "s"
	case strings.HasSuffix(m.Name, "_total"):
		unit = "cps"
	}
	var targets []object
	for i, q := range queries(m) {
		targets = append(targets, object{"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": source()})
	}
	return object{
		"type": "timeseries", "id": id, "title": m.Name, "description": m.What, "datasource": source(), "targets": targets,
		"gridPos":     object{"x": x, "y": y, "w": panelWidth, "h": panelHeight},
		"fieldConfig": object{"defaults": object{"unit": unit, "min": 0}, "overrides": []object{}},
	}
}

type query struct{ expr, legend string }

// queries returns what a panel shows: the rate of a counter, two quantiles of a histogram, and of a gauge the sum over
// processes if each counts its own, else the greatest.
func queries(m Metric) []query {
	matchers := `job=~"$job"`
	legend := make([]string, len(m.Labels))
	for i, label := range m.Labels {
		legend[i] = "{{" + label + "}}"
	}
	if slices.Contains(m.Labels, "group") {
		matchers += `, group=~"$group"`
	}
	selector := func(suffix string) string { return fmt.Sprintf("%s%s{%s}", m.Name, suffix, matchers) }
	by := strings.Join(m.Labels, ", ")
	switch {
	case m.Histogram():
		var qs []query
		for _, q := range []string{"0.5", "0.99"} {
			qs = append(qs, query{
				fmt.Sprintf("histogram_quantile(%s, sum by (%s) (rate(%s[$__rate_interval])))", q, strings.Join(append([]string{"le"}, m.Labels...), ", "), selector("_bucket")),
				strings.TrimSpace(strings.Join(legend, " ") + " q" + q),
			})
		}
		return qs
	case strings.HasSuffix(m.Name, "_total"):
		return []query{{fmt.Sprintf("sum by (%s) (rate(%s[$__rate_interval]))", by, selector("")), strings.Join(legend, " ")}}
	case m.Name == "leat_in_flight":
		return []query{{fmt.Sprintf("sum by (%s) (%s)", by, selector("")), strings.Join(legend, " ")}}
	case m.Name == "leat_transport_connected":
		return []query{{fmt.Sprintf("min by (%s) (%s)", by, selector("")), strings.Join(legend, " ")}}
	default:
		return []query{{fmt.Sprintf("max by (%s) (%s)", by, selector("")), strings.Join(legend, " ")}}
	}
}
