package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/urlopt"
)

// poison has the commands for poison queues.
type poison struct {
	Ls     poisonLs     `cmd:"" help:"List poisoned messages."`
	Stats  poisonStats  `cmd:"" help:"Count poisoned messages by class of error."`
	Show   poisonShow   `cmd:"" help:"Show a poisoned message: its error, headers and payload."`
	Replay poisonReplay `cmd:"" help:"Move poisoned messages back to their group."`
	Rm     poisonRm     `cmd:"" help:"Delete poisoned messages."`
	Edit   poisonEdit   `cmd:"" help:"Change the payload or the headers of a poisoned message."`
	Export poisonExport `cmd:"" help:"Write poisoned messages as JSON lines, byte for byte."`
	Import poisonImport `cmd:"" help:"Write exported messages into a poison queue."`
}

// filter has the flags that select messages.
type filter struct {
	Group   []string `placeholder:"GROUP" help:"Only messages of this group; may be repeated."`
	Topic   string   `placeholder:"PATTERN" help:"Only messages of this topic, or of topics that match this pattern."`
	Type    string   `placeholder:"TYPE" help:"Only events of this type, with or without its version."`
	Version int      `placeholder:"N" help:"Only this version of the event."`
	Class   string   `placeholder:"CLASS" help:"Only messages with this class of error, as stats shows it."`
	Text    string   `placeholder:"TEXT" help:"Only messages with this text in the error or the payload."`
	Since   string   `placeholder:"TIME" help:"Only messages poisoned since: 2h ago, or 2006-01-02T15:04:05Z."`
	Until   string   `placeholder:"TIME" help:"Only messages poisoned before this time."`
	Key     string   `placeholder:"KEY" help:"Only messages of this partition key."`
	ID      []string `name:"id" placeholder:"ID" help:"Only this message: its id in the queue, or the event's id; may be repeated."`
}

func (f filter) filter(now time.Time) (admin.Filter, error) {
	if f.Topic != "" {
		if err := driver.ValidatePattern(f.Topic); err != nil {
			return admin.Filter{}, usage("--topic: %w", err)
		}
	}
	since, err := moment("--since", f.Since, now)
	if err != nil {
		return admin.Filter{}, err
	}
	until, err := moment("--until", f.Until, now)
	if err != nil {
		return admin.Filter{}, err
	}
	return admin.Filter{
		Topic: f.Topic, Type: f.Type, Version: f.Version, Class: f.Class, Text: f.Text,
		Since: since, Until: until, Key: f.Key, IDs: f.ID,
	}, nil
}

// moment parses a time, or a duration before now.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(strings.TrimSuffix(text, " ago")); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%s=%q: write how long ago, like 90m, or a time, like 2006-01-02T15:04:05Z", flag, text)
}

// chosen has the poisoned messages of one group that the flags select.
type chosen struct {
	group string
	queue driver.PoisonQueue
	ids   []string
	seen  int // messages, selected or not
}

// queues returns the poison queues of the groups in the flags, or all that are not empty.
func (f filter) queues(ctx context.Context, s *session) ([]chosen, error) {
	if queues := f.named(ctx, s); queues != nil {
		return queues, nil
	}
	groups, err := s.groups(ctx, f.Group...)
	if err != nil {
		groups, err = f.unlisted(ctx, s, err)
	}
	if err != nil {
		return nil, err
	}
	var queues []chosen
	for _, g := range groups {
		if g.Poisoned != 0 || len(f.Group) > 0 {
			queues = append(queues, chosen{group: g.Name, queue: s.PoisonQueue(g.Name)})
		}
	}
	return queues, nil
}

// named returns the poison queues of the groups in the flags, if none of them is empty. It does not list the groups, which
// not every transport supports.
func (f filter) named(ctx context.Context, s *session) (queues []chosen) {
	ctx, cancel := s.soon(ctx)
	defer cancel()
	for _, name := range f.Group {
		queue := s.PoisonQueue(name)
		if n, err := queue.Len(ctx); err != nil || n == 0 {
			return nil
		}
		queues = append(queues, chosen{group: name, queue: queue})
	}
	return queues
}

// unlisted returns the groups in the flags if the groups can't be listed, as on RabbitMQ without its management API; failed is why.
func (f filter) unlisted(ctx context.Context, s *session, failed error) (groups []driver.GroupInfo, err error) {
	_, fixable := errors.AsType[admin.Fixer](failed)
	finder, finds := s.Transport.(driver.GroupFinder)
	switch anyName := errors.Is(failed, errNoInspector); {
	case anyName && len(f.Group) > 0:
		finds = false
	case !fixable || !finds:
		return nil, failed
	case len(f.Group) == 0:
		return nil, fmt.Errorf("name the groups with --group, or have them listed: %w", failed)
	}
	ctx, cancel := s.soon(ctx)
	defer cancel()
	for _, name := range f.Group {
		if finds {
			found, err := finder.FindGroup(ctx, name)
			if err != nil {
				return nil, err
			}
			if found == "" {
				return nil, fmt.Errorf("group %q was not found, and the groups can't be listed: %w", name, failed)
			}
		}
		groups = append(groups, driver.GroupInfo{Name: name, Poisoned: driver.Unknown})
	}
	return groups, nil
}

// each calls visit with every message that the flags select, group by group.
func (f filter) each(ctx context.Context, s *session, visit func(queue *chosen, m driver.PoisonedMessage) error) ([]chosen, error) {
	matching, err := f.filter(time.Now())
	if err != nil {
		return nil, err
	}
	queues, err := f.queues(ctx, s)
	if err != nil {
		return nil, err
	}
	var there hints
	n := 0
	for i := range queues {
		err := admin.Each(ctx, queues[i].queue, "", func(m driver.PoisonedMessage) error {
			queues[i].seen++
			if !matching.Match(m) {
				there.add(m)
				return nil
			}
			n++
			return visit(&queues[i], m)
		})
		if err != nil {
			return nil, err
		}
	}
	if n == 0 {
		err = there.mistake(f)
	}
	return queues, err
}

// hints has existing values, to suggest one for a flag that selects nothing.
type hints struct{ classes, types, topics []string }

func (h *hints) add(m driver.PoisonedMessage) {
	add := func(known *[]string, value string) {
		if !slices.Contains(*known, value) && len(*known) < maxHints {
			*known = append(*known, value)
		}
	}
	add(&h.classes, m.Fault.Class)
	add(&h.topics, m.Topic())
	if r := admin.Summary("", m); r.Type != "" {
		add(&h.types, r.Type)
	}
}

// maxHints limits the number of values of a queue.
const maxHints = 1000

// mistake returns an error with a suggestion for flags that select nothing.
func (h *hints) mistake(f filter) error {
	for _, flag := range []struct {
		what, value string
		known       []string
	}{{"class", f.Class, h.classes}, {"type", f.Type, h.types}, {"topic", f.Topic, h.topics}} {
		if near := urlopt.Nearest(flag.value, flag.known); near != "" && near != flag.value {
			return usage("no poisoned message has the %s %q. Did you mean %s?", flag.what, flag.value, near)
		}
	}
	return nil
}

// nothing reports that the flags select no message, and why.
func (e *Env) nothing(queues []chosen) {
	seen := 0
	for _, q := range queues {
		seen += q.seen
	}
	if seen == 0 {
		fmt.Fprintln(e.Stderr, "no poisoned messages")
	} else {
		fmt.Fprintf(e.Stderr, "none of %s matches the flags\n", strings.Replace(messages(seen), "message", "poisoned message", 1))
	}
}

// choose returns the ids of the selected messages, and counts them by class.
func (f filter) choose(ctx context.Context, s *session) (queues []chosen, classes *admin.Classes, n int, err error) {
	classes = new(admin.Classes)
	queues, err = f.each(ctx, s, func(queue *chosen, m driver.PoisonedMessage) error {
		queue.ids = append(queue.ids, m.ID)
		classes.Add(queue.group, m)
		n++
		return nil
	})
	if err == nil && n == 0 {
		s.nothing(queues)
	}
	return queues, classes, n, err
}

var errNoSuch = errors.New("no poisoned message has the id")

// one returns the message with this id, of any group.
func (f filter) one(ctx context.Context, s *session, id string) (queue chosen, m driver.PoisonedMessage, err error) {
	found, exact := 0, false
	_, err = f.each(ctx, s, func(q *chosen, candidate driver.PoisonedMessage) error {
		is := id == candidate.ID || id == driver.MessageID(candidate.Message)
		if !is && (exact || !isShortFor(id, candidate.ID) && !isShortFor(id, driver.MessageID(candidate.Message))) {
			return nil
		}
		if is && !exact {
			found, exact = 0, true
		}
		found++
		queue, m = *q, candidate
		return nil
	})
	switch {
	case err != nil:
		return queue, m, err
	case found == 0:
		return queue, m, fmt.Errorf("%w %q; %s poison ls shows them", errNoSuch, id, s.Program)
	case found > 1:
		return queue, m, usage("%d poisoned messages have the id %q; give one by its group and its id in the queue", found, id)
	}
	return queue, m, nil
}

// minShortID is the minimum length of a shortened id.
const minShortID = 6

// isShortFor reports whether a text is the end of an id, as tables on narrow terminals show it.
func isShortFor(s, id string) bool {
	s = strings.TrimPrefix(s, "…")
	return len(s) >= minShortID && strings.HasSuffix(id, s)
}

// writeClasses shows counts by class.
func (e *Env) writeClasses(classes []admin.Class) error {
	t := newTable(e.Stdout, column{"GROUP", phrase}, column{name: "COUNT"}, column{name: "CLASS"}, column{"TYPES", phrase}, column{name: "OLDEST"},
		column{name: "NEWEST"}, column{"LAST ERROR", prose})
	for _, c := range classes {
		t.row(c.Group, c.Count, c.Class, strings.Join(c.Types, ", "), ago(c.Oldest), ago(c.Newest), short(c.Sample, errorWidth))
	}
	return t.flush()
}
