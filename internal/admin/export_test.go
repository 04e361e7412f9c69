package admin

import (
	"context"
	"net"
)

// Serve serves the endpoint on a listener of the test's own.
func (a Endpoint) Serve(ctx context.Context, listener net.Listener) *Server {
	return a.serve(ctx, newBoundedListener(listener), "", func() {})
}
