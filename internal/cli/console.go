package cli

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	webconsole "github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/internal/admin"
)

type console struct {
	connect `embed:""`

	Listen   string `default:"127.0.0.1:0" placeholder:"ADDRESS" help:"The address to listen on, on this machine only. Port 0 means a free port."`
	Actions  bool   `help:"Allow to replay, drop, edit and try messages, to pause groups, to delete groups that nobody consumes, and to publish test events. Without it the console is read-only."`
	TraceURL string `name:"trace-url" placeholder:"URL" help:"The address of a trace in your trace viewer, such as https://jaeger.example/trace/{trace_id}; messages link to it."`
}

// Run serves the console until it is interrupted. It prints a URL with a token in its path, and serves only requests with
// that token.
func (c *console) Run(ctx context.Context, e *Env) error {
	host, _, err := net.SplitHostPort(c.Listen)
	if ip, notIP := netip.ParseAddr(host); err != nil || host != "localhost" && (notIP != nil || !ip.IsLoopback()) {
		return usage("--listen %s: write a loopback address and a port, like 127.0.0.1:8080; for other machines, serve the console at the service's admin endpoint", c.Listen)
	}
	return c.with(ctx, e, func(s *session) error {
		if _, remote := s.Transport.(*admin.Client); !remote && !s.Capabilities().Durable {
			return usage("this transport is inside the service's process; give the URL of the service's admin endpoint")
		}
		if err := webconsole.CheckTraceURL(c.TraceURL); err != nil {
			return &UsageError{err}
		}
		pages := webconsole.New(webconsole.Config{Transport: s.Transport, Actions: c.Actions, TraceURL: c.TraceURL})
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
		if err != nil {
			return err
		}
		prefix := "/" + rand.Text()
		server := &http.Server{
			Handler:           behind(prefix, pages),
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return ctx },
		}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(listener) }()
		fmt.Fprintf(s.Stdout, "http://%s%s/\n", listener.Addr(), prefix)
		fmt.Fprintln(s.Stderr, "open it in a browser; Ctrl-C ends the console")
		select {
		case err = <-ended:
			return err
		case <-ctx.Done():
		}
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.wait)
		defer cancel()
		err = server.Shutdown(stopping)
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	})
}

// behind serves only paths below a secret prefix.
func behind(prefix string, next http.Handler) http.Handler {
	stripped := http.StripPrefix(prefix, next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if subtle.ConstantTimeCompare([]byte("/"+given), []byte(prefix)) != 1 {
			w.Header().Set("Content-Security-Policy", "default-src 'none'")
			http.Error(w, "Open the URL that leat console has printed.", http.StatusForbidden)
			return
		}
		stripped.ServeHTTP(w, r)
	})
}
