package main

import (
	"testing"

	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// Example is the whole program: it ends by itself.
func Example() {
	main()
	// Output: hello, world
}
