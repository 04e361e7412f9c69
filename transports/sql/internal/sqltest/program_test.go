package sqltest

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgram_missingFailsIfRequired checks that a missing program fails the test if it is required, and skips it otherwise.
func TestProgram_missingFailsIfRequired(t *testing.T) {
	for required, want := range map[string]verdict{"redis,postgres": {failed: true}, "redis": {skipped: true}, "": {skipped: true}} {
		t.Setenv("LEAT_TEST_REQUIRE", required)
		got := ask(t, func(tb testing.TB) { Program(tb, "postgres", "leat-has-no-such-program") })
		require.Equal(t, want.failed, got.failed, required)
		require.Equal(t, want.skipped, got.skipped, required)
		require.Contains(t, got.message, "no program leat-has-no-such-program for a private server; install")
	}
}

// ask returns the calls that a helper makes on its test, without ending this test.
func ask(t *testing.T, help func(testing.TB)) *verdict {
	v := &verdict{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		help(v)
	}()
	<-ended
	return v
}

// A verdict records the calls that a helper makes on its test.
type verdict struct {
	testing.TB
	skipped, failed bool
	message         string
}

func (v *verdict) Helper() {}

func (v *verdict) Skip(args ...any) {
	v.skipped, v.message = true, fmt.Sprint(args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed, v.message = true, fmt.Sprintf(format, args...)
	runtime.Goexit()
}
