package fxmodule

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
)

// AdminParams is what the admin endpoint is made of.
type AdminParams struct {
	fx.In

	Lifecycle fx.Lifecycle
	Config    Config
	Bus       *bus.Bus
	Stack     middleware.Stack
	Idle      *admin.Idle  `optional:"true"`
	Logger    *slog.Logger `optional:"true"`
}

// RunAdmin opens the admin endpoint where the configuration has an address for it. It is there from when
// the bus consumes until it stops.
func RunAdmin(p AdminParams) error {
	if p.Config.Admin == "" || p.Idle != nil {
		return nil
	}
	endpoint := admin.Endpoint{
		Addr: p.Config.Admin, Token: p.Config.AdminToken, Cert: p.Config.AdminCert, Key: p.Config.AdminKey, Bus: p.Bus,
		DryRunner: admin.NewLocalDryRunner(p.Bus, p.Stack), Logger: cmp.Or(p.Logger, slog.Default()),
	}
	if err := endpoint.Validate(); err != nil {
		return fmt.Errorf("fxmodule: %sADMIN: %w", Prefix, err)
	}
	var server *admin.Server
	p.Lifecycle.Append(fx.StartStopHook(
		func(ctx context.Context) (err error) {
			server, err = endpoint.Start(ctx)
			return err
		},
		func(ctx context.Context) error { return server.Stop(ctx) },
	))
	return nil
}
