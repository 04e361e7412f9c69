package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestImport_letsTransportsOpenAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leat.db")
	transport, err := transports.Open(t.Context(), "sqlite://"+path)
	require.NoError(t, err)
	require.NoError(t, transport.Close(t.Context()))
	require.FileExists(t, path)
}
