package operator

import (
	"context"
	"net"
)

// Serve serves the endpoint on a listener of the test's own.
func (a Admin) Serve(ctx context.Context, listener net.Listener) *AdminServer {
	return a.serve(ctx, listener, "", func() {})
}
