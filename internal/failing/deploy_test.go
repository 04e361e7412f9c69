package failing_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
)

// placedV1 is the event of the old release.
type placedV1 struct {
	Order    string `json:"order"`
	N        int    `json:"n"` // counts the events of the order, from 1
	Customer string `json:"customer"`
}

func (placedV1) EventType() (string, int) { return "order.placed", 1 }
func (e placedV1) PartitionKey() string   { return e.Order }
func (e placedV1) fact() fact             { return fact{e.Order, e.N, e.Customer} }

// placedV2 is the event of the new release, with a field renamed.
type placedV2 struct {
	Order string `json:"order"`
	N     int    `json:"n"`
	Name  string `json:"name"`
}

func (placedV2) EventType() (string, int) { return "order.placed", 2 }
func (e placedV2) PartitionKey() string   { return e.Order }
func (e placedV2) fact() fact             { return fact{e.Order, e.N, e.Name} }

// fact is what both versions of the event say.
type fact struct {
	order    string
	n        int
	customer string
}

func (f fact) id() string { return fmt.Sprintf("%s-%d", f.order, f.n) }

// release is a version of the service.
type release struct {
	event    func(fact) bus.Event
	handlers func(*deploy) []bus.Handler
}

var (
	oldRelease = release{
		event:    func(f fact) bus.Event { return placedV1{f.order, f.n, f.customer} },
		handlers: func(d *deploy) []bus.Handler { return consumer[placedV1](d) },
	}
	newRelease = release{
		event: func(f fact) bus.Event { return placedV2{f.order, f.n, f.customer} },
		handlers: func(d *deploy) []bus.Handler {
			return consumer[placedV2](d, middleware.Upcast(func(e placedV1) placedV2 { return placedV2{e.Order, e.N, e.Customer} }))
		},
	}
)

// The groups of the service.
const (
	orderedGroup   = "stock"
	unorderedGroup = "mail"
)

// consumer returns the handlers of a release that handles events of type E.
func consumer[E interface {
	bus.Event
	fact() fact
}](d *deploy, upcasters ...middleware.Upcaster) []bus.Handler {
	stack := middleware.Standard(middleware.Config{Upcasters: upcasters}).Before(middleware.StepVersion, middleware.Use("sooner", d.sooner))
	handler := func(group string, opts ...handlers.Option) bus.Handler {
		return handlers.Func(group, func(_ context.Context, e E) error {
			d.handle(group, e.fact())
			return nil
		}, append(opts, handlers.Stack(stack))...)
	}
	return []bus.Handler{handler(orderedGroup, handlers.OrderedByKey()), handler(unorderedGroup)}
}

// deploy is a rolling deploy of a service with two consuming and two publishing pods, under load.
type deploy struct {
	*world
	ledger *ledger // its ids are of the form group/order-n
	opened opened
	newer  atomic.Int64 // deliveries of a newer version than the handler takes

	consumers   [2]*process
	longestStop time.Duration

	mu         sync.Mutex // guards what follows
	publishers [2]publisher
	published  []string       // ids, one for each group
	versions   map[int]int    // published events by version
	done       map[string]int // the last handled event of each order, in the ordered group
	faults     []string
}

// publisher is a pod that publishes the events of its release.
type publisher struct {
	*process
	release
}

// TestDeploy_poisonsAndLosesNothing deploys a release that raises an event's version, pod by pod, while both releases publish.
func TestDeploy_poisonsAndLosesNothing(t *testing.T) {
	orders := map[string]func(*deploy){
		"consumers first": func(d *deploy) {
			d.deployConsumers()
			d.deployPublishers()
			require.Zero(t, d.newer.Load(), "the old release gets no newer events")
		},
		"publishers first": func(d *deploy) {
			d.deployPublishers()
			d.await("newer events wait in both groups", func() bool {
				return d.waits(orderedGroup) && d.waits(unorderedGroup) || d.poisoned() > 0
			})
			d.deployConsumers()
		},
	}
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for order, play := range orders {
				t.Run(order, func(t *testing.T) {
					d := &deploy{
						world:  &world{TB: t, system: s.make(t, unique("failing")), service: unique("shop")},
						ledger: newLedger(), versions: make(map[int]int), done: make(map[string]int),
					}
					d.play(play)
				})
			}
		})
	}
}

// play runs the deploy under load, and checks what became of every event.
func (d *deploy) play(steps func(*deploy)) {
	began := time.Now()
	for i := range 2 {
		d.consumers[i] = d.pod(oldRelease.handlers(d)...)
		d.publishers[i] = publisher{d.pod(), oldRelease}
	}
	stopLoad := d.load()
	defer stopLoad()
	d.awaitLoad()
	steps(d)
	d.awaitLoad()
	stopLoad()
	d.await("every event is handled, or one is poisoned", func() bool {
		handled, _ := d.ledger.counts()
		return handled == len(d.published) || d.poisoned() > 0
	})
	require.Zero(d, d.poisoned(), "poisoned")
	for i := range d.consumers {
		d.consumers[i].end()
		d.publishers[i].end()
	}
	require.Empty(d, d.ledger.missing(d.published), "lost")
	require.Empty(d, d.faults)
	require.Zero(d, d.opened.times.Load(), "pauses")
	twice := 0
	for _, n := range d.ledger.handled {
		if n > 1 {
			twice++
		}
	}
	d.Logf("%.1f s: %d events of v1 and %d of v2 handled by both groups, %d twice; newer ones given back %d times; 0 poisoned, 0 lost; a pod stops within %.1f s",
		time.Since(began).Seconds(), d.versions[1], d.versions[2], twice, d.newer.Load(), d.longestStop.Seconds())
}

func (d *deploy) deployConsumers() {
	for i := range d.consumers {
		old := d.consumers[i]
		d.consumers[i] = d.pod(newRelease.handlers(d)...)
		d.stop(old)
		d.awaitLoad()
	}
}

func (d *deploy) deployPublishers() {
	for i := range d.publishers {
		old, next := d.publishers[i], publisher{d.pod(), newRelease}
		d.mu.Lock()
		d.publishers[i] = next
		d.mu.Unlock()
		d.stop(old.process) // in the middle of publishing
		d.awaitLoad()
	}
}

func (d *deploy) pod(hs ...bus.Handler) *process {
	p, err := d.tryStart(bus.Config{Observers: []bus.Observer{&d.opened}}, hs...)
	require.NoError(d, err)
	return p
}

// stop ends a pod as SIGTERM does.
func (d *deploy) stop(pod *process) {
	began := time.Now()
	pod.end()
	d.longestStop = max(d.longestStop, time.Since(began))
}

// load publishes events of several orders until stop is called. The events of one order are published one after the other, by
// any pod.
func (d *deploy) load() (stop func()) {
	const orders, pace = 6, 80 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range orders {
		wg.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for n := 1; ctx.Err() == nil; n++ {
				if !assert.NoError(d, d.publish(fact{order: fmt.Sprintf("order%d", i), n: n, customer: "Ada"})) {
					return
				}
				<-tick.C
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// publish publishes an event by one of the pods. If that pod stops meanwhile, another one publishes it again under the same id, as
// behind a load balancer. The message may then be there twice.
func (d *deploy) publish(f fact) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := f.n; ; i++ {
		d.mu.Lock()
		pod := d.publishers[i%len(d.publishers)]
		d.mu.Unlock()
		event := pod.event(f)
		err := pod.Publish(ctx, event, bus.WithID(f.id()), bus.RequireRoute())
		if errors.Is(err, bus.ErrClosed) {
			continue
		}
		if err != nil {
			return err
		}
		_, version := event.EventType()
		d.mu.Lock()
		d.versions[version]++
		d.published = append(d.published, orderedGroup+"/"+f.id(), unorderedGroup+"/"+f.id())
		d.mu.Unlock()
		return nil
	}
}

// awaitLoad waits for another thirty events.
func (d *deploy) awaitLoad() {
	count := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.published) / 2
	}
	before := count()
	d.await("load", func() bool { return count() >= before+30 })
}

// handle records an event. In the ordered group the events of an order are handled one after the other, at least once.
func (d *deploy) handle(group string, f fact) {
	d.check(f.customer == "Ada", "%s: %s has customer %q", group, f.id(), f.customer)
	if group == orderedGroup {
		d.mu.Lock()
		done := d.done[f.order]
		d.mu.Unlock()
		d.check(f.n <= done+1, "%s begins when %d is the last that was handled", f.id(), done)
	}
	<-time.After(time.Millisecond)
	if group == orderedGroup {
		d.mu.Lock()
		d.done[f.order] = max(d.done[f.order], f.n)
		d.mu.Unlock()
	}
	d.ledger.handle(group + "/" + f.id())
}

func (d *deploy) check(ok bool, format string, args ...any) {
	if ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, fmt.Sprintf(format, args...))
}

// poisoned returns how many messages are in the poison queues.
func (d *deploy) poisoned() (sum int) {
	pod := d.consumers[0]
	for _, group := range []string{orderedGroup, unorderedGroup} {
		n, err := pod.Transport().PoisonQueue(pod.GroupName(group)).Len(context.Background())
		require.NoError(d, err)
		sum += n
	}
	return sum
}

// waits reports whether messages of a newer version wait in a group of the old release.
func (d *deploy) waits(group string) bool {
	for _, pod := range d.consumers {
		for _, health := range pod.Health() {
			if health.Group == pod.GroupName(group) && health.Degraded["newer version"] != "" {
				return true
			}
		}
	}
	return false
}

// sooner redelivers messages of a newer version after 3 s, in place of 30 s. RabbitMQ keeps both delays in a queue of the broker.
func (d *deploy) sooner(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		if r, ok := errors.AsType[*bus.Redelivery](err); ok {
			d.newer.Add(1)
			r.After = 3 * time.Second
		}
		return produced, err
	}
}
