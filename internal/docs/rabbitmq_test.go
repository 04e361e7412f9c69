package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRabbitMQ_rightsAreThoseThatAreTested: the tests of transports/amqp give users the rights of the page, which are those that the
// package's documentation lists.
func TestRabbitMQ_rightsAreThoseThatAreTested(t *testing.T) {
	read := func(pattern string, elements ...string) (rights [][]string) {
		text, err := os.ReadFile(filepath.Join(append([]string{root}, elements...)...))
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			rights = append(rights, match[1:])
		}
		return rights
	}
	documented := read(`//	configure  (.*)\n//	write      (.*)\n//	read       (.*)\n`, "transports", "amqp", "doc.go")
	require.Len(t, documented, 4)
	require.Equal(t, documented, read(`(?m)^rabbitmqctl set_permissions [a-z-]+ '(.*)' '(.*)' '(.*)'$`, "docs", "rabbitmq-in-production.md"))
}

// TestRabbitMQ_patternSparesLeatsQueues: the page, the package's documentation and leat doctor name the same pattern for policies.
func TestRabbitMQ_patternSparesLeatsQueues(t *testing.T) {
	pattern := regexp.MustCompile(`'\^\(\?!leat[^']*'`)
	var first string
	for _, name := range []string{"transports/amqp/doc.go", "transports/amqp/examine.go", "docs/rabbitmq-in-production.md"} {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		require.NoError(t, err)
		found := pattern.FindString(string(text))
		require.NotEmpty(t, found, name)
		if first == "" {
			first = found
		}
		require.Equal(t, first, found, name)
	}
}
