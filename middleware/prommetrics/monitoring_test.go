package prommetrics_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

// described is a registerer that notes the metrics that it is given, with their labels.
type described map[string]string

var (
	descName   = regexp.MustCompile(`fqName: "([^"]*)"`)
	descConst  = regexp.MustCompile(`constLabels: \{([^}]*)\}`)
	descLabels = regexp.MustCompile(`variableLabels: \{([^}]*)\}`)
	constName  = regexp.MustCompile(`([a-z_]+)="[^"]*"`)
)

func (d described) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	for desc := range descs {
		var labels []string
		for _, match := range constName.FindAllStringSubmatch(descConst.FindStringSubmatch(desc.String())[1], -1) {
			labels = append(labels, match[1])
		}
		if variable := descLabels.FindStringSubmatch(desc.String())[1]; variable != "" {
			labels = append(labels, strings.Split(variable, ",")...)
		}
		d[descName.FindStringSubmatch(desc.String())[1]] = strings.Join(labels, ", ")
	}
	return nil
}

func (d described) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		_ = d.Register(c)
	}
}

func (described) Unregister(prometheus.Collector) bool { return false }

// registered returns all metrics of the package with their labels.
func registered(t *testing.T) map[string]string {
	t.Helper()
	all := described{}
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "test", Outbox: &waiting{}})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	_, err = prommetrics.New(all, prommetrics.WithOTelNames(""))
	require.NoError(t, err)
	require.NoError(t, prommetrics.Health(all, b))
	require.NoError(t, prommetrics.Groups(all, b))
	require.NoError(t, prommetrics.Outbox(all, b))
	return all
}

// row is a row of the tables of metrics in the documents: a metric, its labels and a text.
var row = regexp.MustCompile("(?m)^\\| `((?:leat|event|messaging)_[a-z_]+)` \\| ([a-z_, ]*?) *\\| .+\\|$")

func TestMonitoringPages_listEveryMetric(t *testing.T) {
	have := registered(t)
	require.NotEmpty(t, have)
	for _, page := range []string{"docs/monitoring.md", "docs/zh-CN/monitoring.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", page))
		require.NoError(t, err)
		listed := make(map[string]string)
		for _, match := range row.FindAllStringSubmatch(string(text), -1) {
			require.NotContains(t, listed, match[1], "%s lists it twice", page)
			listed[match[1]] = match[2]
		}
		require.Equal(t, slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(listed)), page)
		require.Equal(t, have, listed, page)
	}
}
