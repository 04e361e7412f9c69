package admin

import (
	"cmp"
	"errors"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A Group is a group in JSON, for leat groups and the admin endpoint. null means unknown.
type Group struct {
	Group     string     `json:"group"`
	Topics    []string   `json:"topics"`
	Waiting   *int       `json:"waiting"`
	Delayed   *int       `json:"delayed"`
	Parked    *int       `json:"parked"`
	InFlight  *int       `json:"in_flight"`
	Poisoned  *int       `json:"poisoned"`
	Consumers *int       `json:"consumers"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	Paused    string     `json:"paused,omitempty"` // who has paused it in this process, as in driver.GroupInfo
}

// DescribeGroup returns a group for JSON.
func DescribeGroup(g driver.GroupInfo) Group {
	count := func(n int) *int {
		if n == driver.Unknown {
			return nil
		}
		return &n
	}
	return Group{
		Group:     g.Name,
		Topics:    g.Topics,
		Waiting:   count(g.Waiting),
		Delayed:   count(g.Delayed),
		Parked:    count(g.Parked),
		InFlight:  count(g.InFlight),
		Poisoned:  count(g.Poisoned),
		Consumers: count(g.Consumers),
		Oldest:    instant(g.Oldest),
		Paused:    g.Paused,
	}
}

func (g Group) info() driver.GroupInfo {
	count := func(n *int) int {
		if n == nil {
			return driver.Unknown
		}
		return *n
	}
	info := driver.GroupInfo{
		Name:      g.Group,
		Topics:    g.Topics,
		Waiting:   count(g.Waiting),
		Delayed:   count(g.Delayed),
		Parked:    count(g.Parked),
		InFlight:  count(g.InFlight),
		Poisoned:  count(g.Poisoned),
		Consumers: count(g.Consumers),
		Paused:    g.Paused,
	}
	if g.Oldest != nil {
		info.Oldest = *g.Oldest
	}
	return info
}

// Topic is a topic in JSON.
type Topic struct {
	Topic  string   `json:"topic"`
	Groups []string `json:"groups"`
}

// Finding is a finding in JSON.
type Finding struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
	Fix   string `json:"fix,omitempty"`
	Cure  string `json:"cure,omitempty"` // the former name of Fix, for older readers
}

// DescribeFinding returns a finding for JSON.
func DescribeFinding(f driver.Finding) Finding {
	d := Finding{Check: f.Check, OK: f.Err == nil, Text: f.Text}
	if f.Err != nil {
		d.Error, d.Fix, d.Cure = f.Err.Error(), f.Fix, f.Fix
	}
	return d
}

func (f Finding) finding() driver.Finding {
	found := driver.Finding{Check: f.Check, Text: f.Text, Fix: cmp.Or(f.Fix, f.Cure)}
	if !f.OK {
		found.Err = errors.New(f.Error)
	}
	return found
}

// each changes every element.
func each[From, To any](all []From, change func(From) To) []To {
	changed := make([]To, len(all))
	for i, x := range all {
		changed[i] = change(x)
	}
	return changed
}
