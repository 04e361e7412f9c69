package monitoring

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write dashboard.json")

func table(t *testing.T) []Metric {
	t.Helper()
	metrics, err := ReadTable(filepath.Join("..", "docs", "monitoring.md"))
	require.NoError(t, err)
	require.Greater(t, len(metrics), 30)
	return metrics
}

// names returns the metrics that an expression asks for, without what a histogram adds to its name. It fails for a metric
// or a label that the table does not have.
func names(t *testing.T, metrics []Metric, expr string) (found []string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	require.NoError(t, err, expr)
	allowed := []string{"__name__", "job", "le"}
	labels := []string(nil)
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			i := slices.IndexFunc(metrics, func(m Metric) bool {
				if m.Histogram() {
					return slices.Contains([]string{m.Name + "_bucket", m.Name + "_sum", m.Name + "_count"}, n.Name)
				}
				return m.Name == n.Name
			})
			require.GreaterOrEqual(t, i, 0, "%s is not in the table: %s", n.Name, expr)
			found = append(found, metrics[i].Name)
			allowed = append(allowed, metrics[i].Labels...)
			for _, m := range n.LabelMatchers {
				labels = append(labels, m.Name)
			}
		case *parser.AggregateExpr:
			labels = append(labels, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				labels = append(labels, n.VectorMatching.MatchingLabels...)
			}
		}
		return nil
	})
	require.NotEmpty(t, found, expr)
	require.Subset(t, allowed, labels, expr)
	return found
}

func TestAlerts_askForMetricsOfTheTable(t *testing.T) {
	metrics := table(t)
	seen := make(map[string]bool)
	for _, rule := range readRules(t) {
		require.False(t, seen[rule.Alert], "%s is there twice", rule.Alert)
		seen[rule.Alert] = true
		names(t, metrics, rule.Expr)
		require.NotEmpty(t, rule.Labels["severity"], rule.Alert)
		require.NotEmpty(t, rule.Annotations["summary"], rule.Alert)
		require.NotEmpty(t, rule.Annotations["fix"], rule.Alert)
	}
	require.GreaterOrEqual(t, len(seen), 14)
}

func TestDashboard_isMadeOfTheTableAndShowsAllOfIt(t *testing.T) {
	metrics := table(t)
	want, err := Dashboard(metrics)
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile("dashboard.json", want, 0o600))
	}
	have, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	require.Equal(t, string(want), string(have), "go test -update writes it anew")

	var shown []string
	for _, expr := range dashboardExprs(t) {
		shown = append(shown, names(t, metrics, expr)...)
	}
	for _, m := range metrics {
		if !strings.HasPrefix(m.Name, "messaging_") {
			require.Contains(t, shown, m.Name)
		}
	}
}

type shownPanel struct {
	Title   string
	Targets []struct{ Expr string }
}

func readDashboard(t *testing.T) []shownPanel {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var board struct{ Panels []shownPanel }
	require.NoError(t, json.Unmarshal(text, &board))
	return board.Panels
}
