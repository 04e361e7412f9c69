package amqp

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A survey has the queues and bindings of the virtual host that may be leat's.
type survey struct {
	topology *topology
	queues   map[string]apiQueue
	retries  map[string][]string // names, by that of the queue they lead to
	bound    map[apiBinding]bool
	from     map[string][]apiBinding // by the name of the queue or exchange that they lead to
}

func (m *management) survey(ctx context.Context, t *topology) (*survey, error) {
	s := &survey{
		topology: t, queues: make(map[string]apiQueue), retries: make(map[string][]string),
		bound: make(map[apiBinding]bool), from: make(map[string][]apiBinding),
	}
	queues, err := fetchAll[apiQueue](ctx, m, "management", m.inVhost("queues"), queueColumns, true)
	if err != nil {
		return nil, err
	}
	for _, q := range queues {
		if !q.Exclusive && (isOurs(q) || t.watermill() && strings.Contains(q.Name, "_")) {
			if _, twice := s.queues[q.Name]; isRetryName(q.Name) && !twice { // pages may overlap
				s.retries[groupOfOwn(q.Name)] = append(s.retries[groupOfOwn(q.Name)], q.Name)
			}
			s.queues[q.Name] = q
		}
	}
	bindings, err := fetchAll[apiBinding](ctx, m, "management", m.inVhost("bindings"), "source,destination,destination_type,routing_key", false)
	for _, b := range bindings {
		_, known := s.queues[b.To]
		if b.Source != "" && (known || b.Kind == "exchange") {
			s.bound[b] = true
			s.from[b.To] = append(s.from[b.To], b)
		}
	}
	return s, err
}

// survey reads the API for operators' tools.
func (in *inspector) survey(ctx context.Context) (s *survey, err error) {
	err = in.withManagement(ctx, func(_ context.Context, _ *management, found *survey) error {
		s = found
		return nil
	})
	return s, err
}

// withManagement calls do with the API and a survey. It uses at most half of the caller's time, so that something else can be
// tried if the API does not answer.
func (in *inspector) withManagement(ctx context.Context, do func(context.Context, *management, *survey) error) error {
	if !in.life.enter() {
		return driver.ErrClosed
	}
	in.life.active.Add(-1) // Close need not wait
	m, err := newManagement(in.topology.cfg)
	if err != nil {
		return &ManagementError{Where: "https", Reason: err.Error(), fix: "correct the URL's TLS options"}
	}
	defer m.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, patienceFor(ctx))
	defer cancel()
	s, err := m.survey(ctx, in.topology.topology)
	if err == nil {
		err = in.complete(ctx, s)
	}
	if err != nil {
		return err
	}
	return do(ctx, m, s)
}

// patienceFor returns how long the API may take: at most half of the time that is left.
func patienceFor(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(managementWhole, time.Until(deadline)/2)
	}
	return managementWhole
}

// complete reads counts over AMQP that the API does not have yet.
func (in *inspector) complete(ctx context.Context, s *survey) error {
	var fresh []string
	for name, q := range s.queues {
		if q.Ready == nil || q.Consumers == nil {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	return in.inspect(ctx, "count", func(i *inspection) error {
		for _, name := range fresh {
			counted, there, err := i.peek(name)
			if err != nil {
				return err
			}
			if q := s.queues[name]; there {
				q.Ready, q.Consumers = &counted.Messages, &counted.Consumers
				s.queues[name] = q
			}
		}
		return nil
	})
}

// oldRegistryPrefix begins the names of the queues in which older versions list their groups.
const oldRegistryPrefix = "leat.groups."

// isOurs reports whether a queue looks like one that leat has declared.
func isOurs(q apiQueue) bool {
	return isGroupQueue(q) || groupOfOwn(q.Name) != "" || strings.HasPrefix(q.Name, delayPrefix) || strings.HasPrefix(q.Name, oldRegistryPrefix)
}

// isGroupQueue reports whether a queue is a group's: its messages are dead-lettered to the poison queue of its name.
func isGroupQueue(q apiQueue) bool {
	return q.text("x-dead-letter-routing-key") == poisonName(q.Name)
}

// groupOfOwn returns the group to which a further queue belongs, or with topology=watermill its queue; "" if there is none.
func groupOfOwn(name string) string {
	for _, suffix := range []string{poisonSuffix, keysSuffix, heldSuffix, leadSuffix} {
		if group, ok := strings.CutSuffix(name, suffix); ok {
			return group
		}
	}
	if parkedPattern.MatchString(name) {
		return name[:strings.LastIndex(name, parkedInfix)]
	}
	if isRetryName(name) {
		return name[:strings.LastIndex(name, retryInfix)]
	}
	return ""
}

// surveyed is a group as the API shows it.
type surveyed struct {
	name    string
	queues  []apiQueue
	topics  []string // sorted
	ordered bool
}

// groups returns the groups that are bound to the exchange, and those without bindings.
func (s *survey) groups() (all []surveyed) {
	for _, q := range s.queues {
		var g surveyed
		var ok bool
		if s.topology.watermill() {
			g, ok = s.watermillGroup(q)
		} else {
			g, ok = s.group(q)
		}
		if ok {
			slices.Sort(g.topics)
			g.topics = slices.Compact(g.topics)
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b surveyed) int { return cmp.Compare(a.name, b.name) })
	return all
}

func (s *survey) group(q apiQueue) (g surveyed, ok bool) {
	if !isGroupQueue(q) {
		return g, false
	}
	g = surveyed{name: q.Name, queues: []apiQueue{q}}
	g.ordered, _ = q.Arguments["x-single-active-consumer"].(bool)
	others := 0
	for _, b := range s.from[q.Name] {
		switch {
		case b.Kind != "queue":
		case b.Source == s.topology.cfg.ExchangeName:
			g.topics = append(g.topics, patternOf(b.Key))
		default:
			others++
		}
	}
	return g, len(g.topics) > 0 || others == 0
}

// watermillGroup finds a group by its poison queue, because the queues of topics have no arguments.
func (s *survey) watermillGroup(poison apiQueue) (g surveyed, ok bool) {
	g.name, ok = strings.CutSuffix(poison.Name, poisonSuffix)
	if !ok || isGroupQueue(s.queues[g.name]) {
		return g, false
	}
	for name, q := range s.queues {
		topic, mine := strings.CutSuffix(name, "_"+g.name)
		if mine && s.bound[apiBinding{Source: topic, To: name, Kind: "queue"}] {
			g.queues, g.topics = append(g.queues, q), append(g.topics, topic)
		}
	}
	return g, len(g.queues) > 0
}

// patternOf returns the pattern of a binding key. It is the inverse of [bindingKey].
func patternOf(key string) string {
	if key == "#" {
		return ">"
	}
	if head, ok := strings.CutSuffix(key, ".*.#"); ok {
		return head + ".>"
	}
	return key
}

// info returns a group's counts. The leader of an ordered group has one unacked message that is not the application's.
func (s *survey) info(g surveyed) driver.GroupInfo {
	info := driver.GroupInfo{Name: g.name, Topics: g.topics}
	for _, q := range g.queues {
		info.Waiting += q.ready()
		info.InFlight += deref(q.Unacked)
		info.Consumers = max(info.Consumers, q.consumers())
		for _, retry := range s.retries[q.Name] {
			info.Delayed += s.queues[retry].all()
		}
	}
	if g.ordered {
		info.InFlight = max(info.InFlight-1, 0)
	}
	info.Poisoned = s.queues[poisonName(g.name)].all()
	info.Parked = s.parked(g.name)
	return info
}

// parked returns how many messages of a group are parked.
func (s *survey) parked(group string) (n int) {
	for name, q := range s.queues {
		if strings.HasPrefix(name, group+parkedInfix) && groupOfOwn(name) == group {
			n += q.all()
		}
	}
	return n
}
