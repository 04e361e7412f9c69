package admin

import "slices"

// A Prospect summarizes a dry run for the messages of one class. It is also encoded as JSON.
type Prospect struct {
	Group     string   `json:"group"`
	Class     string   `json:"class"` // of their errors
	Count     int      `json:"count"`
	Succeed   int      `json:"would_succeed"`
	Published int      `json:"would_publish"`
	Now       []string `json:"now_fails_with"` // classes of error, sorted
	Sample    string   `json:"sample,omitempty"`
}

// Prospects counts the results of a dry run by group and class. The zero value is ready to use.
type Prospects []*Prospect

// Add counts the result of a message that had failed with the class.
func (p *Prospects) Add(group, class string, r DryRunResult) {
	i := slices.IndexFunc(*p, func(p *Prospect) bool { return p.Group == group && p.Class == class })
	if i < 0 {
		i, *p = len(*p), append(*p, &Prospect{Group: group, Class: class, Now: []string{}})
	}
	of := (*p)[i]
	of.Count++
	of.Published += r.Published
	if r.Error == "" {
		of.Succeed++
		return
	}
	of.Sample = r.Error
	if at, there := slices.BinarySearch(of.Now, r.Class); !there {
		of.Now = slices.Insert(of.Now, at, r.Class)
	}
}
