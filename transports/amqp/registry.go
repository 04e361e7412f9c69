package amqp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

// The registry is how a process knows of groups that others have made: AMQP can't list queues, and the
// management plugin may be absent. It is a queue in which every group leaves a note when it is declared.
// Nobody consumes it; it is read as a poison queue is, under a lock, and put back. Whoever reads it takes
// away what newer notes say as well, and the notes of groups that are gone. So it has one note for each
// set of topics that a group was ever subscribed to, and a few more until somebody reads it.
//
// There is one for each type of queue, as there is of the queues for delays.
const (
	registryPrefix = "leat.groups."

	// registryMax bounds the notes: beyond it the oldest go.
	registryMax = 10_000
	// registryTidy: whoever adds the note that completes so many reads them all, which tidies up.
	registryTidy = 256
	// registryPatience is how long the broker may take for one visit in the background.
	registryPatience = 30 * time.Second
)

func registryName(queues QueueType) string { return registryPrefix + string(queues) }

func registryArgs(queues QueueType) amqp.Table {
	args := plainArgs(queues)
	args["x-max-length"] = int64(registryMax)
	return args
}

// note is what a group says of itself.
type note struct {
	Group    string    `json:"group"`
	Topics   []string  `json:"topics"` // sorted
	Order    string    `json:"order"`
	Exchange string    `json:"exchange"`         // "" where each topic has its own
	Delays   []string  `json:"delays,omitempty"` // those with a queue, sorted
	At       time.Time `json:"at"`

	queues QueueType // that of the registry it stands in
}

// says reports whether the note says all that an older one does.
func (n note) says(older note) bool {
	return len(without(older.Topics, n.Topics)) == 0 && len(n.saysNotOf(older)) == 0
}

// saysNotOf are the delays of an older note that this one does not have.
func (n note) saysNotOf(older note) []string { return without(older.Delays, n.Delays) }

// without are the texts that are not among others.
func without(texts, others []string) []string {
	return slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return slices.Contains(others, text) })
}

// validate says whether the note can be a group's: anybody may have left it.
func (n note) validate() error {
	if len(n.Exchange) > maxNameBytes || len(n.Delays) > maxRetryQueues {
		return errors.New("too long")
	}
	for _, delay := range n.Delays {
		if !isRetryName(retryInfix + delay) {
			return fmt.Errorf("delay %q", delay)
		}
	}
	return n.subscription().Validate()
}

// subscription is the group as it was declared.
func (n note) subscription() driver.Subscription {
	s := driver.Subscription{Group: n.Group, Topics: n.Topics, Known: n.Topics, Concurrency: 1}
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly} {
		if order.String() == n.Order {
			s.Order = order
		}
	}
	for _, text := range n.Delays {
		if delay, err := time.ParseDuration(text); err == nil {
			s.Delays = append(s.Delays, delay)
		}
	}
	return s
}

// registry leaves the notes of this process's groups, in the background. It never keeps a group from its
// work: without it only the inspection suffers.
type registry struct {
	t      *Transport
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	pending map[string]note
	idle    chan struct{} // closed when nothing is under way; nil before anything was
}

func newRegistry(t *Transport) *registry {
	r := &registry{t: t, pending: make(map[string]note)}
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	return r
}

// noteOf is what a group says of itself.
func (t *topology) noteOf(s driver.Subscription) note {
	n := note{Group: s.Group, Topics: slices.Clone(s.Topics), Order: s.Order.String(), Exchange: t.cfg.ExchangeName, At: time.Now().UTC(), queues: t.cfg.QueueType}
	if t.watermill() {
		n.Topics, n.Exchange = slices.Clone(s.Known), ""
	}
	slices.Sort(n.Topics)
	n.Topics = slices.Compact(n.Topics)
	for _, delay := range t.retryDelays(s) {
		n.Delays = append(n.Delays, delayText(delay))
	}
	slices.Sort(n.Delays)
	return n
}

// announce leaves a note of a group that was just declared. It does not block. It is called from a
// goroutine that Close waits for.
func (r *registry) announce(s driver.Subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	r.pending[s.Group] = r.t.topology.noteOf(s)
	if len(r.pending) > 1 {
		return // whoever is under way takes it along
	}
	if r.idle == nil || isClosed(r.idle) {
		r.idle = make(chan struct{})
		r.t.work.Go(r.run)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (r *registry) run() {
	for {
		r.mu.Lock()
		batch := r.pending
		if len(batch) == 0 {
			close(r.idle)
			r.mu.Unlock()
			return
		}
		r.pending = make(map[string]note)
		r.mu.Unlock()

		ctx, cancel := context.WithTimeout(r.ctx, registryPatience)
		if err := r.leave(ctx, batch); err != nil && r.ctx.Err() == nil {
			r.t.cfg.Logger.Warn("leat: amqp: groups could not be noted down; other processes can't list them", "queue", registryName(r.t.cfg.QueueType), "err", err)
		}
		cancel()
	}
}

// leave publishes notes, over a channel of its own: what the broker has against it concerns nobody else.
func (r *registry) leave(ctx context.Context, batch map[string]note) error {
	name := registryName(r.t.cfg.QueueType)
	conn, wire, err := r.t.publishing.connection(ctx)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer closeQuietly(ch)
	declare := ch.QueueDeclare
	if r.t.cfg.Declare == DeclareNothing {
		declare = ch.QueueDeclarePassive
	}
	q, err := declare(name, durable, autoDelete, exclusive, noWait, registryArgs(r.t.cfg.QueueType))
	switch {
	case r.t.cfg.Declare == DeclareNothing && isCode(err, amqp.NotFound):
		return nil // nobody who may has made it
	case err != nil:
		return fmt.Errorf("queue %q: %w", name, conflict(err, false))
	}
	ln, err := newLane(ch, wire)
	if err != nil {
		return err
	}
	var out []*outgoing
	for _, n := range batch {
		out = append(out, &outgoing{key: name, msg: n.publishing(r.t.cfg.AppID)})
	}
	pending, err := ln.send(ctx, r.t.publishing, out)
	switch {
	case err != nil:
		return err
	case len(pending) > 0:
		return errors.New("the connection was lost")
	case (q.Messages+len(out))/registryTidy > q.Messages/registryTidy:
		_, err = r.read(&browser{ctx: ctx, conn: conn, wire: wire}, r.t.cfg.QueueType)
	}
	return err
}

func (n note) publishing(app string) amqp.Publishing {
	body, err := json.Marshal(n)
	if err != nil {
		panic("amqp: " + err.Error()) // strings and a time
	}
	return amqp.Publishing{
		ContentType: "application/json", DeliveryMode: amqp.Persistent, Timestamp: n.At, Type: "leat.group",
		MessageId: ids.New(), AppId: app, Body: body,
	}
}

// groupKey tells groups apart.
type groupKey struct{ group, exchange string }

// read reads the notes of one registry, newest first for each group, and takes away those that say
// nothing. The look has its connection.
func (r *registry) read(l *browser, queues QueueType) (map[groupKey][]note, error) {
	l.queue = registryName(queues)
	found := make(map[groupKey][]noted)
	var bad []*amqp.Delivery
	err := r.t.browse(l, l.queue+".lock", func(l *browser) error {
		err := l.walk(func(_ string, d *amqp.Delivery) (bool, error) {
			x := noted{delivery: d}
			if json.Unmarshal(d.Body, &x.note) == nil && x.validate() == nil && trusted(d) {
				x.queues = queues
				key := groupKey{x.Group, x.Exchange}
				found[key] = append(found[key], x)
			} else {
				bad = append(bad, d)
			}
			return true, nil
		})
		if err == nil {
			err = l.take(bad...)
		}
		if err != nil {
			return err
		}
		return r.tidy(l, found)
	})
	if err != nil {
		return nil, fmt.Errorf("queue %q: %w", l.queue, err)
	}
	notes := make(map[groupKey][]note, len(found))
	for key, all := range found {
		for _, x := range all {
			notes[key] = append(notes[key], x.note)
		}
	}
	return notes, nil
}

// noted is a note and the message it came in.
type noted struct {
	note
	delivery *amqp.Delivery
}

// tidy takes away what newer notes of a group say as well, and the notes of groups that have no queue.
// A group whose queue is made again meanwhile leaves another note afterwards, which was not read here.
func (r *registry) tidy(l *browser, found map[groupKey][]noted) error {
	p := prober{conn: l.conn}
	defer p.close()
	for key, all := range found {
		slices.SortFunc(all, func(a, b noted) int { return cmp.Compare(b.At.UnixNano(), a.At.UnixNano()) })
		var kept []noted
		for _, x := range all {
			keep := !slices.ContainsFunc(kept, func(newer noted) bool { return newer.says(x.note) })
			if keep {
				var err error
				if keep, err = r.t.topology.anyThere(&p, x.note); err != nil {
					return err
				}
			}
			if keep && len(kept) > 0 {
				if err := r.t.topology.forgetDelays(&p, kept[0].note, &x.note); err != nil {
					return err
				}
				keep = !slices.ContainsFunc(kept, func(newer noted) bool { return newer.says(x.note) })
			}
			if keep {
				kept = append(kept, x)
			} else if err := l.take(x.delivery); err != nil {
				return err
			}
		}
		if found[key] = kept; len(kept) == 0 {
			delete(found, key)
		}
	}
	return nil
}

// anyThere reports whether the group has a queue.
func (t *topology) anyThere(p *prober, n note) (bool, error) {
	for _, queue := range t.noted(n).queues(n.subscription()) {
		_, ok, err := p.queue(queue)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// forgetDelays takes those delays out of an older note that the newest does not have and whose queues are gone.
func (t *topology) forgetDelays(p *prober, newest note, older *note) error {
	for _, delay := range newest.saysNotOf(*older) {
		_, there, err := p.queue(older.Group + retryInfix + delay)
		if err != nil {
			return err
		}
		if !there {
			older.Delays = without(older.Delays, []string{delay})
		}
	}
	return nil
}

// noted is the topology by which a group was declared that left a note.
func (t *topology) noted(n note) *topology {
	cfg := *t.cfg
	cfg.QueueType, cfg.ExchangeName, cfg.Topology = n.queues, n.Exchange, TopologyLeat
	if n.Exchange == "" {
		cfg.Topology = TopologyWatermill
	}
	return &topology{cfg: &cfg}
}

// close lets what is under way come to its end, unless the broker takes nothing now.
func (r *registry) close(ctx context.Context) {
	r.mu.Lock()
	idle := r.idle
	r.mu.Unlock()
	if idle != nil && r.t.publishing.state() == nil {
		timeout := time.NewTimer(lastWords)
		defer timeout.Stop()
		select {
		case <-idle:
		case <-timeout.C:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel() // nothing begins any more
}

// prober asks for one queue after the other: the broker closes the channel over each that is not there.
type prober struct {
	conn *amqp.Connection
	ch   *amqp.Channel
}

// do runs an operation on a channel that is open.
func (p *prober) do(what func(*amqp.Channel) error) (err error) {
	if p.ch == nil || p.ch.IsClosed() {
		if p.ch, err = p.conn.Channel(); err != nil {
			return err
		}
	}
	return what(p.ch)
}

// queue answers the queue's counts; ok is false where there is none of that name.
func (p *prober) queue(name string) (q amqp.Queue, ok bool, err error) {
	err = p.do(func(ch *amqp.Channel) error {
		q, err = ch.QueueDeclarePassive(name, durable, autoDelete, exclusive, noWait, nil)
		return err
	})
	if isCode(err, amqp.NotFound) {
		return q, false, nil
	}
	return q, err == nil, err
}

func (p *prober) close() {
	if p.ch != nil {
		closeQuietly(p.ch)
	}
}
