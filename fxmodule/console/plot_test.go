package console

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/admin"
)

func TestFigure_hasGapsWhereNothingIsKnown(t *testing.T) {
	start := time.Unix(0, 0)
	var points []point
	for i, v := range []float64{10, 20, unknown, unknown, 40, unknown} {
		points = append(points, point{at: start.Add(time.Duration(i) * time.Minute), p99: v, p50: unknown})
	}
	f := newFigure("Time", points, microseconds,
		series{"p50", "p50", func(p point) float64 { return p.p50 }}, series{"p99", "p99", func(p point) float64 { return p.p99 }})
	require.Equal(t, []lineText{{"p50", "p50", "–", "–"}, {"p99", "p99", "–", "40 µs"}}, f.Lines)
	require.Contains(t, f.SVG, `aria-label="Time: p50 – now, – at most; p99 – now, 40 µs at most, in the last 5 min 00 s"`)
	require.Contains(t, f.SVG, `<path class="area p50" d=""/><path class="line p50" d=""/>`)
	require.Contains(t, f.SVG, `<path class="line p99" d="M0.0,35.5h0L48.0,25.0M192.0,4.0h0"/>`)
	require.Contains(t, f.SVG, `<path class="area p99" d="M0.0,47L0.0,35.5L48.0,25.0L48.0,47ZM192.0,47L192.0,4.0L192.0,47Z"/>`)
	require.Contains(t, newFigure("Time", nil, short, series{}).SVG, "nothing was counted yet")
}

func TestGroup_plotsWhatIsKnown(t *testing.T) {
	captions := func(g groupView) string {
		var all []string
		for _, f := range g.Plots() {
			all = append(all, f.Caption)
		}
		return strings.Join(all, "; ")
	}
	here := &admin.GroupDescription{}
	empty, waits, aged := point{}, point{waiting: 1, oldest: unknown}, point{waiting: 1, oldest: 3}
	require.Equal(t, "Waiting; Poisoned; Oldest message; Handled a second, here; Time of a delivery, here", captions(groupView{Service: here, Points: []point{empty}}))
	require.Equal(t, "Waiting; Poisoned; Oldest message", captions(groupView{Points: []point{empty, waits, aged}}))
	require.Equal(t, "Waiting; Poisoned", captions(groupView{Points: []point{empty, waits}}), "RabbitMQ does not know the age of messages")
}

func TestMicroseconds_haveTwoDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0 µs", 850: "850 µs", 1250: "1.2 ms", 80_000: "80 ms", 1_300_000: "1.3 s", 12_000_000: "12 s", 125_000_000: "2 min 05 s"} {
		require.Equal(t, want, microseconds(v))
	}
}
