package sql_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
)

func TestSQLiteFile_isForItsUserAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no mode")
	}
	path := filepath.Join(t.TempDir(), "leat.db")
	transport, err := sql.Open(t.Context(), &url.URL{Scheme: "sqlite", Path: path})
	require.NoError(t, err)
	receiver, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "shop.mail", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	require.NoError(t, transport.Publish(t.Context(), "order.paid.v1", message.NewMessage("1", nil)))
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Greater(t, len(files), 1, "with its write-ahead log")
	for _, file := range files {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode(), file)
	}
	require.NoError(t, receiver.Close(context.Background()))
	require.NoError(t, transport.Close(context.Background()))

	_, err = sql.Open(t.Context(), &url.URL{Scheme: "sqlite", Opaque: "a%00b"})
	require.ErrorContains(t, err, "NUL")
	other := filepath.Join(t.TempDir(), "other.db")
	_, _, err = sql.OpenExistingDB(&url.URL{Scheme: "sqlite", Path: other})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoFileExists(t, other)
}
