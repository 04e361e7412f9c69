package fxmodule

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
)

// AdminParams has the dependencies of [RunAdmin].
type AdminParams struct {
	fx.In

	Lifecycle fx.Lifecycle
	Config    Config
	Bus       *bus.Bus
	Stack     middleware.Stack
	Idle      *admin.Idle  `optional:"true"`
	Console   consoleMaker `optional:"true"`
	Logger    *slog.Logger `optional:"true"`
}

// A consoleMaker returns the console of a bus.
type consoleMaker func(*bus.Bus, middleware.Stack) http.Handler

// Console serves a console for browsers at the admin endpoint, below /console/. The password is the admin token. The
// argument is console.ReadOnly or console.WithActions of package fxmodule/console, or your own function.
func Console(newConsole func(*bus.Bus, middleware.Stack) http.Handler) fx.Option {
	return fx.Supply(consoleMaker(newConsole))
}

// RunAdmin opens the admin endpoint if the configuration has an address for it. It is open while the bus
// consumes.
func RunAdmin(p AdminParams) error {
	if p.Config.Admin == "" || p.Idle != nil {
		return nil
	}
	endpoint := admin.Endpoint{
		Addr: p.Config.Admin, Token: p.Config.AdminToken, Cert: p.Config.AdminCert, Key: p.Config.AdminKey, Bus: p.Bus,
		DryRunner: admin.NewLocalDryRunner(p.Bus, p.Stack), Describer: admin.NewLocalDescriber(p.Bus, p.Bus.Transport(), p.Stack), Logger: cmp.Or(p.Logger, slog.Default()),
	}
	if p.Console != nil {
		endpoint.Console = p.Console(p.Bus, p.Stack)
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
