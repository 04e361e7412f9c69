package waitcounter_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/internal/waitcounter"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestCounter_waitEndsAtZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n waitcounter.Counter
		require.NoError(t, n.Wait(t.Context()), "it begins at zero")
		n.Add(2)
		ended := make(chan error, 2)
		for range 2 {
			go func() { ended <- n.Wait(t.Context()) }()
		}
		n.Add(-1)
		synctest.Wait()
		require.Empty(t, ended)
		n.Add(-1)
		require.NoError(t, <-ended)
		require.NoError(t, <-ended)
	})
}

func TestCounter_waitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n waitcounter.Counter
		n.Add(1)
		impatient := errors.New("impatient")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, impatient)
		defer cancel()
		require.ErrorIs(t, n.Wait(ctx), impatient)
		n.Add(-1)
		require.NoError(t, n.Wait(t.Context()))
	})
}
