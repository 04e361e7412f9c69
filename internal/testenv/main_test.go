package testenv

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGoroutinesThatEndLateAreAwaitedAndOthersAreTold(t *testing.T) {
	late := make(chan struct{})
	go func() { <-late }()
	require.ErrorContains(t, awaitGoroutines(0), "TestGoroutinesThatEndLateAreAwaitedAndOthersAreTold")

	time.AfterFunc(time.Second, func() { close(late) }) // longer than goleak waits by itself
	require.NoError(t, awaitGoroutines(time.Minute))
}
