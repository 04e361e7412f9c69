package console

import (
	"net/http"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// finding is a finding of the doctor.
type finding struct {
	driver.Finding
	State chip
}

func (c *console) doctor(w http.ResponseWriter, r *http.Request) error {
	inspector, err := c.inspector()
	if err != nil {
		return err
	}
	var page []finding
	for _, f := range admin.Diagnose(r.Context(), inspector) {
		state := chip{"ok", "ok"}
		if f.Err != nil {
			state = chip{"bad", "wrong"}
		}
		page = append(page, finding{f, state})
	}
	return c.render(w, r, http.StatusOK, "doctor", "doctor", "Doctor", page)
}

// wiringPage is what the service is made of.
type wiringPage struct {
	Service      *admin.Description // nil if nobody here knows it
	Capabilities []string           // of the transport
}

func (c *console) wiring(w http.ResponseWriter, r *http.Request) error {
	page := wiringPage{Service: c.describe(r.Context()), Capabilities: admin.CapabilityNames(c.transport.Capabilities())}
	return c.render(w, r, http.StatusOK, "wiring", "wiring", "Wiring", page)
}
