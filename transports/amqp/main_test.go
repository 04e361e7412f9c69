package amqp_test

import (
	"testing"

	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) {
	waitTogether()
	testenv.Main(m, stopOwnBroker, stopOwnCluster)
}
