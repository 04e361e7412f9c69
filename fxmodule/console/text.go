package console

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// templates has the pages by name. Each has the layout and the shared parts.
type templates map[string]*template.Template

func parseTemplates() templates {
	shared := template.Must(template.New("").Funcs(template.FuncMap{
		"number": number, "count": count, "ago": ago, "span": span, "stamp": stamp, "print": admin.Printable, "printLines": admin.PrintableLines,
		"query": query, "ageName": ageName, "plural": plural, "topics": shownTopics,
	}).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err) // the pattern is right
	}
	pages := make(templates)
	for _, name := range names {
		page := template.Must(template.Must(shared.Clone()).ParseFS(files, name))
		pages[strings.TrimSuffix(path.Base(name), ".html")] = page
	}
	return pages
}

// execute returns the text of a part of a page.
func (t templates) execute(page, part string, data any) (string, error) {
	var b strings.Builder
	err := t[page].ExecuteTemplate(&b, part, data)
	return b.String(), err
}

// ageName returns an age, as the filter has it, in words.
func ageName(age string) string {
	d, err := time.ParseDuration(age)
	if err != nil {
		return age
	}
	switch {
	case d%(24*time.Hour) == 0:
		return plural(int(d/(24*time.Hour)), "day", "days")
	case d%time.Hour == 0:
		return plural(int(d/time.Hour), "hour", "hours")
	case d%time.Minute == 0:
		return plural(int(d/time.Minute), "minute", "minutes")
	}
	return age
}

// shownTopics returns topics with one name for an event and its versions: order.paid[.*] for order.paid and order.paid.*,
// for which each handler of a typed event asks.
func shownTopics(topics []string) []string {
	var shown []string
	for _, topic := range topics {
		name, versions := strings.CutSuffix(topic, ".*")
		switch {
		case versions && slices.Contains(topics, name):
			shown = append(shown, name+"[.*]")
		case !slices.Contains(topics, topic+".*"):
			shown = append(shown, topic)
		}
	}
	return shown
}

// query returns a query string of names and values in turn; what is empty is left out.
func query(pairs ...string) template.URL {
	values := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			values.Set(pairs[i], pairs[i+1])
		}
	}
	return template.URL(values.Encode()) //nolint:gosec // it is encoded
}

// number returns an integer, which is not negative, with separators: 12,345.
func number(n any) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// count returns a count, which may be unknown.
func count(n int) string {
	if n == driver.Unknown {
		return "–"
	}
	return number(n)
}

// ago returns how long ago something was; a dash for the zero time.
func ago(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return span(time.Since(t))
}

// span returns a time for people, in one or two units.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(int(d.Seconds()), 0))
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	}
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05.000 MST")
}

// maxShown bounds what a page shows of a payload, in bytes. The whole can be downloaded.
const maxShown = 64 << 10

// shownPayload is a payload for people.
type shownPayload struct {
	Form string // JSON, text or binary
	Text string
	Size int
	Cut  bool // Text is only the beginning
}

// showPayload returns a payload as indented JSON, as text, or as hexadecimal digits.
func showPayload(payload []byte) shownPayload {
	shown := shownPayload{Size: len(payload), Cut: len(payload) > maxShown}
	if !shown.Cut && json.Valid(payload) {
		var indented bytes.Buffer
		_ = json.Indent(&indented, payload, "", "  ") // it is valid
		shown.Form, shown.Text = "JSON", admin.PrintableLines(indented.String())
		shown.Cut = len(shown.Text) > 4*maxShown // deep nesting grows by its indentation
		shown.Text = strings.ToValidUTF8(shown.Text[:min(len(shown.Text), 4*maxShown)], "")
		return shown
	}
	begin := payload[:min(len(payload), maxShown)]
	for cut := 0; shown.Cut && cut < utf8.UTFMax && !utf8.Valid(begin); cut++ { // it may end inside of a rune
		begin = begin[:len(begin)-1]
	}
	if utf8.Valid(begin) {
		shown.Form, shown.Text = "text", admin.PrintableLines(string(begin))
		return shown
	}
	const maxDump = 16 << 10 // a dump is five times as long
	begin = payload[:min(len(payload), maxDump)]
	shown.Form, shown.Text, shown.Cut = "binary", hex.Dump(begin), len(payload) > maxDump
	return shown
}
