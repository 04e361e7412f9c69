package console

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
)

// plotWidth and plotHeight are the size of a plot in its own units. The style sheet scales it.
const (
	plotWidth  = 240
	plotHeight = 48
)

// minSpan is the time of a whole plot at least; it grows with the points.
const minSpan = 2 * time.Minute

// unknown is a value that is not drawn.
const unknown = -1

// series is one line of a plot.
type series struct {
	name  string // "" for the only line
	class string // of its style
	value func(point) float64
}

// figure is a plot with its caption.
type figure struct {
	Caption string
	Lines   []lineText
	SVG     template.HTML
}

// lineText has the newest and the highest value of a line, in words.
type lineText struct{ Name, Class, Now, Most string }

// newFigure draws lines over time as SVG, the newest at the right edge. say puts a value into words. The SVG has a text for
// those who do not see it.
func newFigure(caption string, points []point, say func(float64) string, lines ...series) figure {
	f := figure{Caption: caption}
	top := 1.0
	var text []string
	for _, line := range lines {
		most, now := float64(unknown), float64(unknown)
		for _, p := range points {
			now = line.value(p)
			most = max(most, now)
		}
		top = max(top, most)
		t := lineText{line.name, line.class, known(now, say), known(most, say)}
		f.Lines = append(f.Lines, t)
		text = append(text, strings.TrimSpace(fmt.Sprintf("%s %s now, %s at most", t.Name, t.Now, t.Most)))
	}
	label := caption + ": nothing was counted yet"
	var drawn strings.Builder
	if n := len(points); n > 0 {
		newest, whole := points[n-1].at, points[n-1].at.Sub(points[0].at)
		label = fmt.Sprintf("%s: %s, in the last %s", caption, strings.Join(text, "; "), span(whole))
		whole = max(whole, minSpan)
		x := func(p point) float64 { return plotWidth * (1 - newest.Sub(p.at).Seconds()/whole.Seconds()) }
		y := func(v float64) float64 { return plotHeight - 2 - v/top*(plotHeight-6) }
		for _, line := range lines {
			draw(&drawn, line, points, x, y)
		}
	}
	f.SVG = template.HTML(fmt.Sprintf(`<svg class="plot" viewBox="0 0 %d %d" preserveAspectRatio="none" role="img" aria-label="%s"><title>%[3]s</title>`+ //nolint:gosec // numbers and an escaped label
		`<line class="base" x1="0" y1="%[4]d" x2="%[1]d" y2="%[4]d"/>%[5]s</svg>`,
		plotWidth, plotHeight, template.HTMLEscapeString(label), plotHeight-1, drawn.String()))
	return f
}

// draw writes a line and the area below it. Both have gaps where the value is unknown.
func draw(out *strings.Builder, line series, points []point, x func(point) float64, y func(float64) float64) {
	var path, area strings.Builder
	end := unknown // index of the last point of the part that is being drawn
	for i, p := range points {
		v := line.value(p)
		if v < 0 {
			continue
		}
		if i > 0 && end == i-1 {
			fmt.Fprintf(&path, "L%.1f,%.1f", x(p), y(v))
		} else {
			fmt.Fprintf(&path, "M%.1f,%.1fh0", x(p), y(v)) // the h0 shows a point that stands alone
			fmt.Fprintf(&area, "M%.1f,%d", x(p), plotHeight-1)
		}
		fmt.Fprintf(&area, "L%.1f,%.1f", x(p), y(v))
		if end = i; i == len(points)-1 || line.value(points[i+1]) < 0 {
			fmt.Fprintf(&area, "L%.1f,%dZ", x(p), plotHeight-1)
		}
	}
	fmt.Fprintf(out, `<path class="area %s" d="%s"/><path class="line %[1]s" d="%[3]s"/>`, line.class, area.String(), path.String())
}

// known returns a value in words, a dash for an unknown one.
func known(v float64, say func(float64) string) string {
	if v < 0 {
		return "–"
	}
	return say(v)
}

// short returns a number with one decimal if it needs one.
func short(v float64) string {
	if v == float64(int(v)) {
		return number(int(v))
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// seconds returns a number of seconds in words.
func seconds(v float64) string { return span(time.Duration(v * float64(time.Second))) }

// microseconds returns a number of microseconds with about two digits: 850 µs, 1.2 ms, 80 ms, 1.3 s, 2 min 05 s.
func microseconds(v float64) string {
	switch d := time.Duration(v) * time.Microsecond; {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return span(d)
	}
}
