package cli

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestReadLine_endsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		stdin, keyboard := io.Pipe()
		ctx, interrupt := context.WithCancel(t.Context())
		interrupt()
		_, err := readLine(ctx, stdin)
		require.ErrorIs(t, err, errInterrupted)
		require.NoError(t, keyboard.Close()) // ends the read

		stdin, keyboard = io.Pipe()
		go func() { _, _ = io.WriteString(keyboard, "y\nn\n") }()
		line, err := readLine(t.Context(), stdin)
		require.NoError(t, err)
		require.Equal(t, "y\n", line)
		require.NoError(t, stdin.Close())
	})
}
