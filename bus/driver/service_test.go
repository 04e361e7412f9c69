package driver

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDefaultService_namesTheProgram(t *testing.T) {
	for _, c := range []struct{ module, pkg, service, program string }{
		{"github.com/acme/orders", "github.com/acme/orders", "orders", ""},
		{"github.com/acme/orders", "github.com/acme/orders/cmd/orders", "orders", ""},
		{"github.com/acme/orders", "github.com/acme/orders/cmd/worker", "orders", "worker"},
		{"github.com/acme/orders/v3", "github.com/acme/orders/v3", "orders", ""},
		{"github.com/acme/orders/v3", "github.com/acme/orders/v3/cmd/worker", "orders", "worker"},
		{"github.com/acme/orders", "github.com/acme/orders/worker/v2", "orders", "worker"},
		{"github.com/acme/orders", "command-line-arguments", "orders", ""},
		{"github.com/acme/orders", "github.com/acme/orders/cmd/worker.test", "orders", ""},
		{"orders", "orders/cmd/my worker", "orders", "my-worker"},
		{"github.com/acme/.orders", "github.com/acme/.orders", "orders", ""},
	} {
		service, program := serviceOf(c.module, c.pkg)
		require.Equal(t, []string{c.service, c.program}, []string{service, program}, c)
	}
	service, _ := serviceOf("", "command-line-arguments")
	require.Equal(t, "driver", service, "the executable's name, where there is no module")
}

// has is a message system with one group.
type has string

func (h has) FindGroup(_ context.Context, names ...string) (string, error) {
	switch {
	case h == "":
		return "", errors.New("away")
	case slices.Contains(names, string(h)):
		return string(h), nil
	}
	return "", nil
}

func TestCheckDefaultService_findsGroupsThatWouldBeLeftBehind(t *testing.T) {
	check := func(finder GroupFinder) error {
		return checkDefaultService(t.Context(), finder, "orders", "orders-worker", "mail", "ledger")
	}
	require.NoError(t, check(has("billing.mail")))
	require.NoError(t, check(has("orders-worker.mail")))
	require.EqualError(t, check(has("orders.ledger")), `this program's default service name is "orders-worker", and there is a group "orders.ledger", `+
		`which belongs to another program of this module, or to this one if it had the module's name before: set LEAT_SERVICE or Config.Service `+
		`to "orders-worker" if the group is another program's, or to "orders" if it is this one's`)
	require.EqualError(t, check(has("")), `look for groups of the service "orders": away`)
	require.NoError(t, CheckDefaultService(t.Context(), has("")), "a test has the default name of before")
}
