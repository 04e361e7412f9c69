package testenv

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// goroutinesEnd is how long goroutines may take to end after the last test.
const goroutinesEnd = 10 * time.Second

// Main is for a package's TestMain: it runs the tests, and fails where goroutines outlive them. On a busy
// machine they may take their time to end: goleak alone waits for less than half a second. What is passed
// as last comes after that, also where tests failed.
func Main(m *testing.M, last ...func()) {
	code := m.Run()
	if code == 0 {
		if err := awaitGoroutines(goroutinesEnd); err != nil {
			fmt.Fprintf(os.Stderr, "testenv: goroutines outlive the tests: %v\n", err)
			code = 1
		}
	}
	for _, do := range last {
		do()
	}
	os.Exit(code)
}

// awaitGoroutines returns when no goroutine is left, or tells which are.
func awaitGoroutines(within time.Duration) error {
	for end := time.Now().Add(within); ; {
		err := goleak.Find()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
