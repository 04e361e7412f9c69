package admin

import (
	"context"
	"net"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Serve serves the endpoint on a listener of the test's own.
func (a Endpoint) Serve(ctx context.Context, listener net.Listener) *Server {
	return a.serve(ctx, newBoundedListener(listener), "", func() {})
}

// DiagnoseHealth is diagnoseHealth.
func DiagnoseHealth(h bus.Health, url string) driver.Finding { return diagnoseHealth(h, url) }
