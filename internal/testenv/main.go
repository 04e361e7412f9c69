package testenv

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// goroutinesEnd is how long goroutines may take to end after the last test.
const goroutinesEnd = time.Minute

// Main runs the tests of a package in its TestMain, and fails if goroutines outlive them. It waits longer for goroutines than
// goleak, which waits for less than half a second, because the machine may be busy. It calls the functions in last at the end,
// also if tests failed.
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

// awaitGoroutines blocks until no goroutine is left. It returns an error that lists those that remain.
func awaitGoroutines(within time.Duration) error {
	for end := time.Now().Add(within); ; {
		err := goleak.Find()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// AtOnce sets how many parallel tests run at once, unless the flag -parallel is set. Call it before [Main].
func AtOnce(n int) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // the flag exists
	}
}
