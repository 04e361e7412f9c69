package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// TestGroupsRm deletes the groups of a service that has ended, beside those of one that runs.
func TestGroupsRm(t *testing.T) {
	for name, system := range systems() {
		t.Run(name, func(t *testing.T) {
			another := system(t)
			testscript.Run(t, testscript.Params{
				Dir: "testdata/rm",
				Setup: func(e *testscript.Env) error {
					at := another()
					ended, live := serve(t, e.Defer, at), serve(t, e.Defer, at)
					require.NoError(t, ended.transport.Close(patience(t)))
					e.Setenv("LEAT_URL", at)
					e.Setenv("SVC", ended.name)
					e.Setenv("LIVE", live.name)
					return setup(e)
				},
			})
		})
	}
	t.Run("memory", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/rmmemory",
			Setup: func(e *testscript.Env) error {
				s := serve(t, e.Defer, "memory://")
				e.Setenv("LEAT_URL", s.admin(e.Defer, filepath.Join(t.TempDir(), "s"), ""))
				e.Setenv("SVC", s.name)
				return setup(e)
			},
		})
	})
}

// TestGroupsPause pauses groups of a bus that runs.
func TestGroupsPause(t *testing.T) {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close(patience(t))) })
	for _, name := range []string{"mail", "ledger"} {
		require.NoError(t, b.Handle(bus.Handler{Name: name, Topics: []string{"order.paid.v1"}, Bind: func(bus.Encoder) message.HandlerFunc {
			return func(*message.Message) ([]*message.Message, error) { return nil, nil }
		}}))
	}
	go func() { _ = b.Run(context.Background()) }() // Close ends it
	<-b.Running()
	server, err := admin.Endpoint{
		Addr: filepath.Join(t.TempDir(), "s"), Bus: b, Logger: slog.New(slog.DiscardHandler), Describer: admin.NewLocalDescriber(b, b.Transport(), middleware.Stack{}),
	}.Start(patience(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(patience(t))) })
	tables := onSQLite(t)
	serve(t, t.Cleanup, tables)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/pause",
		Setup: func(e *testscript.Env) error {
			e.Setenv("LEAT_URL", server.URL())
			e.Setenv("TABLES", tables)
			return setup(e)
		},
	})
}
