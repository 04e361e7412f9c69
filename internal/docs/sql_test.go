package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSQL_grantsAreThoseThatAreTested: a test of transports/sql runs the whole contract with the rights that the
// package's documentation lists.
func TestSQL_grantsAreThoseThatAreTested(t *testing.T) {
	grant := regexp.MustCompile(`GRANT .* TO service;`)
	read := func(elements ...string) []string {
		text, err := os.ReadFile(filepath.Join(append([]string{root}, elements...)...))
		require.NoError(t, err)
		return grant.FindAllString(strings.ReplaceAll(string(text), "SCHEMA shop", "SCHEMA …"), -1)
	}
	require.NotEmpty(t, read("transports", "sql", "doc.go"))
	require.Equal(t, read("transports", "sql", "doc.go"), read("docs", "sql-in-production.md"))
}
