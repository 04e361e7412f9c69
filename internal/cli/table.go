package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// A column has a name and a rule for terminals that are too narrow for the table.
type column struct {
	name   string
	narrow narrowing
}

// narrowing is how a column is narrowed. The columns are narrowed in the order of the constants.
type narrowing int

const (
	whole  narrowing = iota // never
	prose                   // is cut at the end
	id                      // is shortened to its end, which differs between ids of about the same time
	phrase                  // is cut at the end, after all others
)

const (
	minProse  = 24
	minPhrase = 12
	idEnd     = 8 // characters of a shortened id
)

// tableWriter writes rows in aligned columns. On a terminal it fits the terminal's width.
type tableWriter struct {
	out     io.Writer
	columns []column
	rows    []table.Row
}

func newTable(out io.Writer, columns ...column) *tableWriter {
	return &tableWriter{out: out, columns: columns}
}

func (t *tableWriter) row(cells ...any) {
	row := make(table.Row, len(cells))
	for i, cell := range cells {
		row[i] = printable(fmt.Sprint(cell))
	}
	t.rows = append(t.rows, row)
}

// plain returns a style without borders: two spaces between columns.
func plain() table.Style {
	return table.Style{
		Name: "plain", Box: table.BoxStyle{PaddingRight: "  ", UnfinishedRow: "…"},
		Format: table.FormatOptions{Header: text.FormatDefault}, Options: table.OptionsNoBordersAndSeparators,
	}
}

func (t *tableWriter) flush() error {
	_, err := io.WriteString(raw(t.out), t.render(terminalWidth(t.out), isTerminal(t.out))+"\n")
	return err
}

// render returns the table for a terminal of that width; 0 means no limit.
func (t *tableWriter) render(width int, colored bool) string {
	t.fit(width)
	w := table.NewWriter()
	style := plain()
	if colored {
		style.Color.Header = text.Colors{text.Bold}
	}
	w.SetStyle(style)
	header := make(table.Row, len(t.columns))
	for i, c := range t.columns {
		header[i] = c.name
	}
	w.AppendHeader(header)
	w.AppendRows(t.rows)
	w.SuppressTrailingSpaces()
	return w.Render()
}

// fit narrows columns until the table fits the width, or nothing is left to cut.
func (t *tableWriter) fit(width int) {
	for _, rule := range []narrowing{prose, id, phrase} {
		for i, c := range t.columns {
			over := t.width() - width
			if width <= 0 || over <= 0 {
				return
			}
			if c.narrow != rule {
				continue
			}
			t.narrow(i, over)
		}
	}
}

func (t *tableWriter) narrow(i, over int) {
	most := t.columnWidth(i) - over
	for _, row := range t.rows {
		cell := row[i].(string)
		switch t.columns[i].narrow {
		case id:
			row[i] = shortID(cell)
		case prose:
			row[i] = short(cell, max(most, minProse))
		case phrase:
			row[i] = short(cell, max(most, minPhrase))
		}
	}
}

func (t *tableWriter) width() int {
	const padding = 2
	width := -padding
	for i := range t.columns {
		width += t.columnWidth(i) + padding
	}
	return width
}

func (t *tableWriter) columnWidth(i int) int {
	width := text.StringWidthWithoutEscSequences(t.columns[i].name)
	for _, row := range t.rows {
		width = max(width, text.StringWidthWithoutEscSequences(row[i].(string)))
	}
	return width
}

// errorWidth is the maximum width of an error in a table's last column. It is large, because the cause is often at the end.
const errorWidth = 120

// short cuts a text to a number of runes for a table.
func short(s string, runes int) string {
	if r := []rune(s); len(r) > runes {
		return string(r[:runes-1]) + "…"
	}
	return s
}

// shortID returns the end of an id. Commands accept it for the whole id; see [isShortFor].
func shortID(s string) string {
	if r := []rune(s); len(r) > idEnd+1 {
		return "…" + string(r[len(r)-idEnd:])
	}
	return s
}

// terminalWidth returns the width of a terminal, 0 if the writer is not a terminal.
func terminalWidth(w io.Writer) int {
	file, ok := raw(w).(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// isTerminal reports whether the output is a terminal.
func isTerminal(stream any) bool {
	if w, ok := stream.(io.Writer); ok {
		stream = raw(w)
	}
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// colored returns a text in a color if the output is a terminal with colors and NO_COLOR is not set.
func (e *Env) colored(s string, color text.Color) string {
	if !isTerminal(e.Stdout) {
		return s
	}
	return color.Sprint(s)
}
