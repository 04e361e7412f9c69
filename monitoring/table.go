package monitoring

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Metric is a row of the tables in docs/monitoring.md.
type Metric struct {
	Section string // the function of prommetrics that registers it
	Name    string
	Labels  []string
	What    string
}

var (
	section = regexp.MustCompile("from `prommetrics\\.([A-Za-z]+)`|with `prommetrics\\.(New)\\(")
	metric  = regexp.MustCompile("^\\| `((?:leat|event|messaging)_[a-z_]+)` \\| ([a-z_, ]*?) *\\| (.+) \\|$")
)

// ReadTable returns the metrics that a page lists, in its order.
func ReadTable(path string) ([]Metric, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []Metric
	from := ""
	for line := range strings.SplitSeq(string(text), "\n") {
		if match := section.FindStringSubmatch(line); match != nil {
			from = match[1] + match[2]
		}
		if match := metric.FindStringSubmatch(line); match != nil {
			m := Metric{Section: from, Name: match[1], What: strings.ReplaceAll(match[3], "`", "")}
			if match[2] != "" {
				m.Labels = strings.Split(match[2], ", ")
			}
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s lists no metrics", path)
	}
	return all, nil
}

// Histogram reports whether the metric is a histogram: durations of single events are.
func (m Metric) Histogram() bool {
	return strings.HasSuffix(m.Name, "_duration_seconds") || strings.HasSuffix(m.Name, "_lag_seconds")
}
