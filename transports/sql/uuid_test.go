package sql_test

import (
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

func TestUUID_mustFitItsColumn(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		for uuid, want := range map[string]string{strings.Repeat("x", 300): "at most 255 fit", "a\x00": "contains a NUL"} {
			err := transport.Publish(sqltest.Context(t), "order.paid.v1", message.NewMessage(uuid, nil))
			require.ErrorContains(t, err, want)
		}
	})
}
