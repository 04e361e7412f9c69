package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTroubleshooting_quotesTheErrorsOfTheCode: each text in the first column of the tables is one of the sources.
func TestTroubleshooting_quotesTheErrorsOfTheCode(t *testing.T) {
	texts := stringsOfTheCode(t)
	for _, dir := range []string{"docs", "docs/zh-CN"} {
		page, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(dir), "troubleshooting.md"))
		require.NoError(t, err)
		all := quoted.FindAllStringSubmatch(string(page), -1)
		require.Greater(t, len(all), 40)
		for _, match := range all {
			if !quotes(texts, match[1]) {
				t.Errorf("%s: no string of the code has the text %q", dir, match[1])
			}
		}
	}
}

var quoted = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// quotes reports whether one of the texts has all parts of a quotation, in their order.
func quotes(texts []string, quotation string) bool {
	parts := regexp.MustCompile(` ?…:? ?`).Split(quotation, -1)
	for _, text := range texts {
		found := true
		for _, part := range parts {
			var behind string
			if _, behind, found = strings.Cut(text, part); !found {
				break
			}
			text = behind
		}
		if found {
			return true
		}
	}
	return false
}

func TestQuotes(t *testing.T) {
	texts := []string{"event %q has version %d; versions start at 1", "closed"}
	require.True(t, quotes(texts, "event … has version …; versions start"))
	require.True(t, quotes(texts, "versions start at 1"))
	require.False(t, quotes(texts, "versions start … has version"))
	require.False(t, quotes(texts, "event … closed"))
}

// stringsOfTheCode returns the strings of all packages that are no tests, and what is put together of them by a plus.
func stringsOfTheCode(t *testing.T) (all []string) {
	for _, dir := range []string{"bus", "fxmodule", "handlers", "internal", "middleware", "transports"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if e, ok := n.(ast.Expr); ok {
					if text := constant(e); text != "" {
						all = append(all, text)
						return false
					}
				}
				return true
			})
			return nil
		})
		require.NoError(t, err)
	}
	return all
}

// constant returns the text of a string, or of several that are put together; "" if it is none.
func constant(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, _ := strconv.Unquote(e.Value) // the parser has read it
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return constant(e.X) + constant(e.Y)
		}
	}
	return ""
}
