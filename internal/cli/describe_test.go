package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

type described struct{}

func (described) EventType() (string, int) { return "order.paid", 2 }

type formerlyDescribed struct{}

func (formerlyDescribed) EventType() (string, int) { return "order.paid", 1 }

func TestDescribe_showsTheWiring(t *testing.T) {
	stack := middleware.Standard(middleware.Config{Upcasters: []middleware.Upcaster{
		middleware.Upcast(func(formerlyDescribed) described { return described{} }),
	}})
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Stack: stack})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	require.NoError(t, b.Handle(handlers.Func("ship", func(context.Context, described) error { return nil }, handlers.OrderedByKey())))
	run := func(describer admin.Describer, args ...string) (int, string, string) {
		var out, said bytes.Buffer
		e := &Env{Program: "shop", Stdout: &out, Stderr: &said, Describer: describer}
		e.Open = func(context.Context) (driver.Transport, error) { return b.Transport(), nil }
		e.Close = func(context.Context) error { return nil }
		status := Run(t.Context(), new(Commands), e, "", append([]string{"describe"}, args...))
		return status, out.String(), said.String()
	}
	describer := admin.NewLocalDescriber(b, b.Transport(), stack)
	status, out, _ := run(describer)
	require.Zero(t, status)
	for _, want := range []string{
		"service       shop\n", "transport     memory\n", "ordered by key", "\nshop.ship\n", "takes         order.paid.v2\n", "retry         50ms 250ms 1s | 5s 30s 5m 30m ±10%",
		"version     order.paid.v1 → order.paid.v2, newer versions wait for 1h0m0s\n", "later messages of a key wait behind a poisoned one",
	} {
		require.Contains(t, out, want)
	}

	status, out, _ = run(describer, "--json")
	require.Zero(t, status)
	var d admin.Description
	require.NoError(t, json.Unmarshal([]byte(out), &d))
	require.Equal(t, "shop", d.Service)
	require.Equal(t, []string{"order.paid.v2"}, d.Groups[0].Types)
	require.Equal(t, middleware.StepObserve, d.Groups[0].Stack[0].Step)

	status, _, said := run(nil)
	require.Equal(t, ExitUsage, status)
	require.Contains(t, said, "give the URL of its admin endpoint")
}
