package admin

import (
	"cmp"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A Class counts the messages of one group that failed with one class of error.
type Class struct {
	Group  string     `json:"group"`
	Class  string     `json:"class"`
	Count  int        `json:"count"`
	Types  []string   `json:"types"` // with their versions, sorted
	Oldest *time.Time `json:"oldest,omitempty"`
	Newest *time.Time `json:"newest,omitempty"`
	Sample string     `json:"sample"` // the error of the newest
}

// Classes counts messages by group and error class. The zero value is ready to use.
type Classes struct {
	all   []*Class
	known map[[2]string]*Class
}

// Add counts a message.
func (c *Classes) Add(group string, m driver.PoisonedMessage) {
	key := [2]string{group, m.Fault.Class}
	class := c.known[key]
	if class == nil {
		if c.known == nil {
			c.known = make(map[[2]string]*Class)
		}
		class = &Class{Group: group, Class: m.Fault.Class}
		c.known[key] = class
		c.all = append(c.all, class)
	}
	class.Count++
	name := m.Topic()
	if t, err := typeOf(m); err == nil {
		name = t.String()
	}
	if i, there := slices.BinarySearch(class.Types, name); !there {
		class.Types = slices.Insert(class.Types, i, name)
	}
	at := instant(m.Fault.At)
	class.Sample = cmp.Or(class.Sample, m.Fault.Text)
	if at == nil {
		return
	}
	if class.Oldest == nil || at.Before(*class.Oldest) {
		class.Oldest = at
	}
	if class.Newest == nil || !at.Before(*class.Newest) {
		class.Newest, class.Sample = at, m.Fault.Text
	}
}

// List returns the classes by group, the most frequent first.
func (c *Classes) List() []Class {
	list := make([]Class, len(c.all))
	for i, class := range c.all {
		list[i] = *class
	}
	slices.SortStableFunc(list, func(a, b Class) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Class, b.Class))
	})
	return list
}
