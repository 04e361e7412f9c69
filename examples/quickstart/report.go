package main

import (
	"encoding/json"
	"io"
	"maps"
	"slices"

	"github.com/leatbus/leat/bus"
)

// report has the results of a run. The lines are counted by the input, everything else by the bus: this program
// does not calculate expected outcomes.
type report struct {
	Read      uint64                 `json:"read"`      // lines that are not blank
	Rejected  uint64                 `json:"rejected"`  // lines that are not valid events
	Published uint64                 `json:"published"` // the others
	Unrouted  uint64                 `json:"unrouted"`  // published, and not routed to any group
	Groups    map[string]groupReport `json:"groups"`
	Lost      uint64                 `json:"lost"` // missing outcomes of all groups

	leftovers uint64 // see settings.leftovers
}

type groupReport struct {
	Handled    uint64 `json:"handled"`
	Duplicates uint64 `json:"duplicates"`
	Poisoned   uint64 `json:"poisoned"`
}

func newReport(in *input, s bus.Stats) report {
	r := report{
		Read:      in.read.Load(),
		Rejected:  in.rejected.Load(),
		Published: s.Published,
		Unrouted:  s.Unrouted,
		Groups:    make(map[string]groupReport, len(s.Groups)),
		Lost:      lostBy(s),
	}
	for name, g := range s.Groups {
		r.Groups[name] = groupReport{Handled: g.Handled, Duplicates: g.Duplicates, Poisoned: g.Poisoned}
		r.leftovers += g.Discarded
	}
	return r
}

// lostBy returns the number of missing outcomes. Each group must have one for every message of this bus that was
// routed to it.
func lostBy(s bus.Stats) (n uint64) {
	for _, g := range s.Groups {
		n += g.Outstanding()
	}
	return n
}

func settledBy(s bus.Stats) (n uint64) {
	for _, g := range s.Groups {
		n += g.Settled
	}
	return n
}

// write prints the report as one line of JSON.
func (r report) write(w io.Writer) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

func (r report) groupNames() []string { return slices.Sorted(maps.Keys(r.Groups)) }
