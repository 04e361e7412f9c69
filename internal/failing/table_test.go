package failing_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table into the docs")

// document is the path of the document that has the table, between two lines.
var document = filepath.Join("..", "..", "transports", "FAILING.md")

const begin, end = "<!-- table -->\n", "<!-- end of table -->\n"

// different has the cells that differ intentionally, as the document explains.
var different = map[string]map[string]string{
	"attempt numbers after a restart of the process": {"memory": "attempt 1, restart, attempt 1"},
}

// results are the texts by scenario and system.
type results struct {
	mu    sync.Mutex
	texts map[string]map[string]string
}

func (r *results) set(scenario, system, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.texts[scenario] == nil {
		r.texts[scenario] = make(map[string]string)
	}
	r.texts[scenario][system] = text
}

func TestFailing_sameOutcomesOnEveryTransport(t *testing.T) {
	r := &results{texts: make(map[string]map[string]string)}
	t.Run("on", func(t *testing.T) { // it returns when all systems are through
		for _, s := range systems {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				own := s.make(t, unique("failing"))
				for _, scenario := range scenarios {
					t.Run(scenario.name, func(t *testing.T) {
						w := &world{TB: t, system: own, service: unique("shop")}
						scenario.play(w)
						r.set(scenario.name, s.name, w.text())
					})
				}
			})
		}
	})
	if t.Failed() || len(r.texts) < len(scenarios) {
		return // -run has chosen some
	}
	for _, scenario := range scenarios {
		row := r.texts[scenario.name]
		common := usual(row)
		for system, text := range row {
			want, ok := different[scenario.name][system]
			if !ok {
				want = common
			}
			require.Equal(t, want, text, "%s: %s; name the difference in the document and in this test, or make it none", scenario.name, system)
		}
	}
	table := r.table()
	t.Log("\n" + table)
	if len(r.texts[scenarios[0].name]) < len(systems) {
		return // some services are not there
	}
	compare(t, table)
}

// usual returns the text that most systems have.
func usual(row map[string]string) string {
	count := make(map[string]int)
	for _, text := range row {
		count[text]++
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b string) int { return count[a] - count[b] })
}

// table has a row for each behaviour, with what happens, and a column for each system.
func (r *results) table() string {
	var b strings.Builder
	b.WriteString("| behaviour | what happens |")
	for _, s := range systems {
		b.WriteString(" " + s.name + " |")
	}
	b.WriteString("\n" + strings.Repeat("|---", len(systems)+2) + "|\n")
	for _, scenario := range scenarios {
		row := r.texts[scenario.name]
		common := usual(row)
		fmt.Fprintf(&b, "| %s | %s |", scenario.name, common)
		for _, s := range systems {
			cell := "✓"
			if row[s.name] != common {
				cell = row[s.name]
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// compare compares the table with the document, or updates the document.
func compare(t *testing.T, table string) {
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	head, rest, found := strings.Cut(string(text), begin)
	require.True(t, found, "%s has no line %q", document, begin)
	_, tail, found := strings.Cut(rest, end)
	require.True(t, found, "%s has no line %q", document, end)
	want := head + begin + "\n" + table + "\n" + end + tail
	if *update {
		require.NoError(t, os.WriteFile(document, []byte(want), 0o600))
		return
	}
	require.Equal(t, want, string(text), "the document is out of step; run go test ./internal/failing -update")
}
