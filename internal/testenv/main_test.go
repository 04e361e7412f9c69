package testenv

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain_awaitsGoroutinesAndReportsLeaks(t *testing.T) {
	late := make(chan struct{})
	go func() { <-late }()
	require.ErrorContains(t, awaitGoroutines(0), "TestMain_awaitsGoroutinesAndReportsLeaks")

	time.AfterFunc(time.Second, func() { close(late) }) // longer than goleak waits by itself
	require.NoError(t, awaitGoroutines(time.Minute))
}
