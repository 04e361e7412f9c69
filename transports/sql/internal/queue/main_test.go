package queue

import (
	"testing"

	"github.com/leatbus/leat/internal/testenv"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestMain(m *testing.M) {
	testenv.AtOnce(4) // they mostly wait for servers
	testenv.Main(m)
}
