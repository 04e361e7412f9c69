package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDocs_namesExist checks that names of packages in inline code, as in `handlers.OrderedByKey()`, exist.
func TestDocs_namesExist(t *testing.T) {
	packages := map[string]string{
		"bus": "bus", "bustest": "bus/bustest", "driver": "bus/driver", "handlers": "handlers", "middleware": "middleware",
		"prommetrics": "middleware/prommetrics", "oteltrace": "middleware/oteltrace", "otelmetrics": "middleware/otelmetrics", "fxmodule": "fxmodule", "cli": "fxmodule/cli", "console": "fxmodule/console",
		"transports": "transports",
	}
	names := make(map[string]map[string]bool)
	for name, dir := range packages {
		names[name] = exportedBy(t, dir)
	}
	watermills := map[string]bool{"PoisonQueue": true, "Deduplicator": true, "Recoverer": true} // in its package middleware
	qualified := regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`)
	for _, name := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, code := range inlineCode.FindAllString(block.ReplaceAllString(string(text), ""), -1) {
			for _, match := range qualified.FindAllStringSubmatch(code, -1) {
				if known, ok := names[match[1]]; ok && !known[match[2]] && !watermills[match[2]] {
					t.Errorf("%s: package %s has no %s", name, match[1], match[2])
				}
			}
		}
	}
}

// exportedBy returns the names of a package's functions, types, constants and variables.
func exportedBy(t *testing.T, dir string) map[string]bool {
	found := make(map[string]bool)
	paths, err := fs.Glob(os.DirFS(root), dir+"/*.go")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				found[d.Name.Name] = found[d.Name.Name] || d.Recv == nil
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						found[s.Name.Name] = true
					case *ast.ValueSpec:
						for _, name := range s.Names {
							found[name.Name] = true
						}
					}
				}
			}
		}
	}
	return found
}
