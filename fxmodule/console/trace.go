package console

import (
	"fmt"
	"net/url"
	"strings"
)

// traceIDPlace is where a trace's id stands in Config.TraceURL.
const traceIDPlace = "{trace_id}"

// CheckTraceURL returns an error unless a console takes the address as its TraceURL.
func CheckTraceURL(address string) error {
	if address == "" {
		return nil
	}
	u, err := url.Parse(strings.ReplaceAll(address, traceIDPlace, "0"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || !strings.Contains(address, traceIDPlace) {
		return fmt.Errorf("console: %q is no address of a trace; write it like https://jaeger.example/trace/{trace_id}", address)
	}
	return nil
}

// traceLink returns the address of a trace in the viewer of a TraceURL, "" if there is no viewer or no trace.
func traceLink(traceURL, traceID string) string {
	if traceURL == "" || traceID == "" {
		return ""
	}
	return strings.ReplaceAll(traceURL, traceIDPlace, url.QueryEscape(traceID))
}
