package fxmodule

import (
	"encoding/json"
	"net/http"
	"path"

	"github.com/leatbus/leat/bus"
)

// HealthHandler returns a handler for the probes of an orchestrator such as Kubernetes. It takes GET and HEAD requests by
// the last element of their path, so that it can be mounted anywhere:
//
//   - live is 200 until the bus has stopped.
//   - ready is 200 while every group consumes. It is 503 before that, while the bus drains, and afterwards.
//   - anything else is 200.
//
// The body is JSON with stable names: the status, the state of each group with its degraded parts, and the state of the
// transport. A paused or degraded group, or a transport that is not connected, does not change the status: that concerns all
// processes alike, so it would not help to restart one or to take it out of traffic.
//
// It does not block, and may be called concurrently. The texts may contain error messages of other systems: do not show them to
// the public.
func HealthHandler(b *bus.Bus) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		report := healthOf(b)
		ok := true
		switch path.Base(r.URL.Path) {
		case "live":
			ok = report.Status != statusStopped
		case "ready":
			ok = report.Status == statusReady
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(report) // the client may have disconnected
	})
}

// The status of a service as a whole.
const (
	statusReady    = "ready"
	statusStarting = "starting"
	statusDraining = "draining"
	statusStopped  = "stopped"
)

type healthReport struct {
	Status    string           `json:"status"`
	Groups    []bus.Health     `json:"groups"`
	Transport *transportReport `json:"transport,omitempty"`
}

type transportReport struct {
	Name       string `json:"name"`
	Connected  bool   `json:"connected"`
	Error      string `json:"error,omitempty"`
	Blocked    string `json:"blocked,omitempty"`
	Reconnects int    `json:"reconnects"`
	Unroutable int64  `json:"unroutable"`
}

func healthOf(b *bus.Bus) healthReport {
	report := healthReport{Status: statusReady, Groups: b.Health()}
	for _, g := range report.Groups {
		switch g.State {
		case bus.Waiting:
			report.Status = statusStarting
		case bus.Draining:
			report.Status = statusDraining
		case bus.Stopped:
			report.Status = statusStopped
		}
	}
	if h, ok := b.TransportHealth(); ok {
		report.Transport = &transportReport{
			Name: h.Transport, Connected: h.Connected, Blocked: h.Blocked, Reconnects: h.Reconnects, Unroutable: h.Unroutable,
		}
		if h.Err != nil {
			report.Transport.Error = h.Err.Error()
		}
	}
	return report
}
