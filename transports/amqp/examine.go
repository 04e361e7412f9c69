package amqp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// examination is what the management API tells a diagnosis. It asks only: it declares, consumes and holds nothing.
type examination struct {
	*survey
	t         *Transport
	ctx       context.Context
	m         *management
	version   string
	exchanges map[string]apiExchange
	findings  []driver.Finding
}

// examine makes the findings, or says why the API does not answer.
func (t *Transport) examine(ctx context.Context, version string) (findings []driver.Finding, err error) {
	m, err := newManagement(t.cfg)
	if err != nil {
		return nil, &ManagementError{Where: "https", Reason: err.Error(), fix: "correct the URL's TLS options"}
	}
	defer m.close()
	ctx, cancel := context.WithTimeout(ctx, patienceFor(ctx))
	defer cancel()
	e := &examination{t: t, ctx: ctx, m: m, version: version, exchanges: make(map[string]apiExchange)}
	if e.survey, err = m.survey(ctx, t.topology); err != nil {
		return nil, err
	}
	if err := t.complete(ctx, e.survey); err != nil {
		return nil, err
	}
	err = fetchAll(ctx, m, "management", m.inVhost("exchanges"), "name,type,durable,arguments", false, func(x apiExchange) {
		if x.Name == t.cfg.ExchangeName || strings.HasPrefix(x.Name, delayPrefix) {
			e.exchanges[x.Name] = x
		}
	})
	if err != nil {
		return nil, err
	}
	groups := e.groups()
	e.ok("management API", "%s tells of %d groups", m.where(), len(groups))
	e.events()
	e.delays(groups)
	for _, g := range groups {
		e.group(g)
	}
	e.orphans(groups)
	e.oldRegistries()
	e.policies()
	e.singleActive()
	e.nodes()
	e.flags()
	return e.findings, nil
}

func (e *examination) ok(check, format string, args ...any) {
	e.findings = append(e.findings, driver.Finding{Check: check, Text: fmt.Sprintf(format, args...)})
}

func (e *examination) wrong(check, fix, format string, args ...any) {
	e.findings = append(e.findings, driver.Finding{Check: check, Err: fmt.Errorf(format, args...), Fix: fix})
}

const fixStart = "start a service of this exchange that may make it, or start it anew: it makes what is missing"

// events looks at the exchange that events are published to.
func (e *examination) events() {
	if e.topology.watermill() {
		return
	}
	name := e.topology.cfg.ExchangeName
	check := "exchange " + name
	x, there := e.exchanges[name]
	switch {
	case !there:
		e.wrong(check, fixStart, "it is not there, and nobody can publish")
	case x.Type != amqp.ExchangeTopic || !x.Durable:
		e.wrong(check, "choose another exchange with the option exchange, or delete this one", "it is a %s exchange (durable: %t); a durable topic exchange is wanted", x.Type, x.Durable)
	default:
		e.ok(check, "a durable topic exchange")
	}
}

// group looks at one group: its queues, their arguments and bindings, and who consumes.
func (e *examination) group(g surveyed) {
	check, info := "group "+g.name, e.info(g)
	t := e.topologyOf(g)
	good := true
	fault := func(fix, format string, args ...any) {
		good = false
		e.wrong(check, fix, format, args...)
	}
	e.queuesOf(g, t, fault)
	held, parked := e.queues[heldName(g.name)].all(), e.parked(g.name)
	switch {
	case len(g.topics) == 0:
		fault("start a process of the group anew: it binds it to its topics; if the group is retired, delete its queues",
			"queue %q is not bound to exchange %q: the group gets nothing", g.name, t.cfg.ExchangeName)
	case g.ordered && held+parked > 0 && info.Consumers == 0:
		fault("start a process of the group: it takes the lead", "%d messages are parked, and no process leads", held+parked)
	case !g.ordered && held+parked > 0:
		fault("start a process of the group: it moves them to the group's queue",
			"%d messages from a time when the group was ordered are parked, and nobody consumes them", held+parked)
	}
	if info.Consumers == 0 {
		fault("start the service that has the group; if it is retired, unbind the queue, or delete the group's queues when nobody wants their messages",
			"no process consumes it, and %d messages wait", info.Waiting)
	}
	if good {
		order := driver.Unordered.String()
		if g.ordered {
			order = "ordered"
		}
		text := describe(order, info)
		if delays := e.delaysOf(g); len(delays) > 0 {
			text += ", delays with queues are " + strings.Join(delays, ", ") + ": delete the queue of one that its retry policy has no more, when it is empty"
		}
		if _, former := e.queues[leadName(g.name)]; former {
			text += formerQueues(g.name)
		}
		e.ok(check, "%s", text)
	}
}

// delaysOf returns the delays that have queues, but for the one that all delays of a group end in.
func (e *examination) delaysOf(g surveyed) (delays []string) {
	for _, q := range g.queues {
		for _, name := range e.retries[q.Name] {
			if delay := strings.TrimPrefix(name, q.Name+retryInfix); delay != delayText(delayUnit) {
				delays = append(delays, delay)
			}
		}
	}
	slices.Sort(delays)
	return delays
}

// queuesOf looks at the queues that a group should have.
func (e *examination) queuesOf(g surveyed, t *topology, fault func(fix, format string, args ...any)) {
	wanted := e.wantedQueues(g, t)
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		q, there := e.queues[name]
		if !there {
			fault("start a process of the group anew: it makes it", "queue %q is not there", name)
			continue
		}
		if differs := foreign(q, wanted[name]); differs != "" {
			fault("delete the queue when it is empty; a process of the group makes it again as it is wanted", "queue %q has foreign arguments: %s", name, differs)
		}
		if retry := retryInfix + delayText(delayUnit); strings.HasSuffix(name, retry) {
			key, exit := strings.TrimSuffix(name, retry), t.redelivering().exit()
			if !e.bound[apiBinding{Source: exit, To: name, Kind: "queue", Key: key}] {
				fault("start a process of the group anew: it makes it", "queue %q is not bound to exchange %q: long delays end in %q", name, exit, t.redelivering().undelivered())
			}
		}
	}
}

// wantedQueues returns the queues that a group should have, with their arguments.
func (e *examination) wantedQueues(g surveyed, t *topology) map[string]amqp.Table {
	s := driver.Subscription{Group: g.name, Topics: g.topics, Known: g.topics}
	if g.ordered {
		s.Order = driver.OrderedByKey
	}
	wanted := map[string]amqp.Table{poisonName(g.name): t.plainArgs()}
	for _, q := range g.queues {
		wanted[q.Name] = t.queueArgs(s)
		retry := retryName(q.Name, delayUnit)
		wanted[retry] = retryArgs(t.cfg.QueueType, retry, q.Name)
		for _, name := range e.retries[q.Name] {
			wanted[name] = retryArgs(t.cfg.QueueType, name, q.Name)
		}
	}
	if g.ordered {
		for _, name := range append(parkedNames(g.name), keysName(g.name)) {
			wanted[name] = t.thrownOutTo(poisonName(g.name))
		}
	}
	return wanted
}

// topologyOf is that by which a group was made.
func (e *examination) topologyOf(g surveyed) *topology {
	queueType := QueueType(e.queues[poisonName(g.name)].Type)
	if queueType == "" && !e.topology.watermill() {
		queueType = QueueType(g.queues[0].Type)
	}
	return e.topology.forQueues(queueType)
}

// retryArgs are those of the queue of a delay; nil where its name has none.
func retryArgs(queueType QueueType, name, queue string) amqp.Table {
	delay, ok := delayOf(name)
	if !ok {
		return nil
	}
	args := delayArgs(queueType, delay, "")
	args["x-dead-letter-routing-key"] = queue
	return args
}

// foreign says which arguments of a queue are not those that leat gives it.
func foreign(q apiQueue, wanted amqp.Table) string {
	if wanted == nil {
		wanted = amqp.Table{}
	}
	var differs []string
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		found, there := q.Arguments[name]
		if text := fmt.Sprint(wanted[name]); !there {
			differs = append(differs, fmt.Sprintf("%s is missing, and %s is wanted", name, text))
		} else if fmt.Sprint(found) != text {
			differs = append(differs, fmt.Sprintf("%s is %v, and %s is wanted", name, found, text))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(q.Arguments)) {
		if _, ok := wanted[name]; !ok {
			differs = append(differs, fmt.Sprintf("%s is %v, and none is wanted", name, q.Arguments[name]))
		}
	}
	return driver.OneLine(strings.Join(differs, "; "), 500)
}

// delays looks at the ways through delays that are there, or that a group needs.
func (e *examination) delays(groups []surveyed) {
	types := make(map[QueueType]bool) // and whether a group needs redeliveries
	for _, g := range groups {
		types[e.topologyOf(g).cfg.QueueType] = true
	}
	for _, queueType := range []QueueType{Quorum, Classic} {
		t := e.topology.forQueues(queueType)
		if types[queueType] || e.anyOf(t.redelivering()) {
			e.way(t.redelivering())
		}
		if e.anyOf(t.publishing()) {
			e.way(t.publishing())
		}
		if kept := e.queues[t.redelivering().undelivered()].all(); kept > 0 {
			e.wrong("queue "+t.redelivering().undelivered(), "start the groups that they are for, and move the messages to their queues with a shovel, or delete them",
				"%d redeliveries to groups whose queues are gone are in it", kept)
		}
	}
}

func (e *examination) anyOf(l levels) bool {
	for n := range delayLevels {
		_, queue := e.queues[l.queue(n)]
		_, exchange := e.exchanges[l.exchangeOf(n)]
		if queue || exchange {
			return true
		}
	}
	return false
}

// way looks at each level.
func (e *examination) way(l levels) {
	check := "queues for delays " + l.name("*")
	fix := "let a process consume a group: it makes what is missing within five minutes"
	if l.way == wayPublish {
		fix = "publish a message with a delay: it makes what is missing"
	}
	var missing []string
	waiting := 0
	need := func(there bool, format string, args ...any) {
		if !there {
			missing = append(missing, fmt.Sprintf(format, args...))
		}
	}
	exchange := func(name string) {
		_, there := e.exchanges[name]
		need(there, "exchange %s", name)
	}
	exchange(l.exit())
	if l.exchange != "" {
		need(e.bound[apiBinding{Source: l.exit(), To: l.exchange, Kind: "exchange"}], "binding of exchange %s to %s", l.exchange, l.exit())
	}
	for n := range delayLevels {
		name := l.queue(n)
		q, there := e.queues[name]
		need(there, "queue %s", name)
		exchange(l.exchangeOf(n))
		need(!there || e.bound[apiBinding{Source: l.exchangeOf(n), To: name, Kind: "queue"}], "binding of queue %s", name)
		waiting += q.all()
		if differs := foreign(q, delayArgs(l.queueType, delayUnit<<n, l.exchangeOf(n-1))); there && differs != "" {
			e.wrong(check, "delete the queue when it is empty; it is made again as it is wanted", "queue %q has foreign arguments: %s", name, differs)
		}
	}
	if len(missing) > 0 {
		e.wrong(check, fix, "not there: %s", some(missing))
		return
	}
	e.ok(check, "%d messages wait in them", waiting)
}

// some names a few and counts the rest.
func some(names []string) string {
	const most = 4
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// orphans are messages beside a group's queue that is not there.
func (e *examination) orphans(groups []surveyed) {
	left := make(map[string][]string)
	known := make(map[string]bool)
	for _, g := range groups {
		known[g.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(e.queues)) {
		owner := groupOfOwn(name)
		if _, there := e.queues[owner]; owner == "" || there || known[owner] || strings.HasSuffix(name, leadSuffix) {
			continue
		}
		q := e.queues[name]
		if q.text("x-dead-letter-routing-key") != owner && foreign(q, plainArgs(QueueType(q.Type))) != "" {
			continue // it only has such a name
		}
		if n := q.all(); n > 0 {
			left[owner] = append(left[owner], fmt.Sprintf("%d in %s", n, name))
		}
	}
	for _, group := range slices.Sorted(maps.Keys(left)) {
		e.wrong("group "+group, "start a process of the group: it makes the queue, and they go on; if the group is retired, delete these queues",
			"its queue is not there, and messages are left: %s", some(left[group]))
	}
}

// oldRegistries looks for the queues by which older versions know each other's groups.
func (e *examination) oldRegistries() {
	for _, name := range slices.Sorted(maps.Keys(e.queues)) {
		if strings.HasPrefix(name, oldRegistryPrefix) {
			e.ok("queue "+name, "older versions list each other's groups in it, and this one does not need it: delete it when none of them runs")
		}
	}
}

// sparesOurs is an example of a pattern for policies.
const sparesOurs = `'^(?!leat\.)(?!.*\.(poison|keys|parked\..*|retry\..*)$)'`

// safeLimit is the lowest delivery limit that deletes nothing from a queue whose messages leat writes anew in time.
const safeLimit = 10

// policies looks for those that would delete what leat has promised to keep.
func (e *examination) policies() {
	type danger struct{ policy, key, value, does string }
	found := make(map[danger][]string)
	for name, q := range e.queues {
		for key, value := range q.Effective {
			if does := e.does(q, key, value); does != "" {
				d := danger{policyOf(q), key, driver.OneLine(fmt.Sprint(value), 100), does}
				found[d] = append(found[d], name)
			}
		}
	}
	if len(found) == 0 {
		e.ok("policies", "none deletes messages from leat's queues")
	}
	lines := make(map[string]danger)
	for d := range found {
		lines[strings.Join([]string{d.policy, d.key, d.value, d.does}, "\x00")] = d
	}
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		d := lines[line]
		queues := found[d]
		slices.Sort(queues)
		e.wrong("policy "+d.policy, "take "+d.key+" out of it, or let its pattern spare leat's queues, like "+sparesOurs,
			"%s %s applies to %s: %s", d.key, d.value, some(queues), d.does)
	}
}

func policyOf(q apiQueue) string {
	switch {
	case q.OperatorPolicy == "":
		return q.Policy
	case q.Policy == "":
		return q.OperatorPolicy + " (operator policy)"
	}
	return q.Policy + " or " + q.OperatorPolicy + " (operator policy)"
}

// does says what a key of a policy does to a queue, "" where it does no harm.
func (e *examination) does(q apiQueue, key string, value any) string {
	out := "deletes messages"
	poison := q.text("x-dead-letter-routing-key")
	kept := strings.HasSuffix(poison, poisonSuffix)
	if kept {
		out = "moves messages to " + poison + " before they are handled"
	}
	timed := q.Arguments["x-message-ttl"] != nil
	switch key {
	case "message-ttl":
		if timed {
			return "ends delays early, if it is lower than they are"
		}
		return out + " that are older than " + fmt.Sprint(value) + " ms"
	case "expires":
		return "deletes the queue with its messages when nobody has used it for " + fmt.Sprint(value) + " ms"
	case "max-length", "max-length-bytes":
		if strings.HasSuffix(q.Name, ".unwanted") {
			return ""
		}
		if q.text("x-overflow") != "" || q.Effective["overflow"] == "reject-publish" {
			return "refuses messages beyond it, which stay where they were"
		}
		return out + " beyond it, the oldest first"
	case "delivery-limit":
		limit, err := strconv.Atoi(fmt.Sprint(value))
		if kept || timed || strings.HasSuffix(q.Name, ".unwanted") || err == nil && (limit < 0 || limit >= safeLimit) {
			return ""
		}
		return fmt.Sprintf("deletes messages that were looked at so often; a limit of %d or more is safe", safeLimit)
	case "dead-letter-exchange", "dead-letter-routing-key":
		if q.Arguments["x-"+key] != nil || kept {
			return "" // arguments come first
		}
		if q.text("x-dead-letter-exchange") != "" {
			return "has delayed messages go elsewhere"
		}
		return "sends what a limit throws out where leat does not look"
	}
	return ""
}

// singleActive knows of a fault of RabbitMQ 4.3.0 to 4.3.5.
func (e *examination) singleActive() {
	if !standsStill(e.version) {
		return
	}
	var queues []string
	for name, q := range e.queues {
		if single, _ := q.Arguments["x-single-active-consumer"].(bool); single && q.Type == string(Quorum) {
			queues = append(queues, name)
		}
	}
	if len(queues) > 0 {
		slices.Sort(queues)
		e.wrong("version of the broker for ordered groups", "upgrade the broker to 4.3.6 or later",
			"on RabbitMQ %s a quorum queue with a single active consumer may stand still for ever once a consumer timed out: %s", e.version, some(queues))
	}
}

func standsStill(version string) bool {
	patch, ok := strings.CutPrefix(version, "4.3.")
	digits := len(patch) - len(strings.TrimLeft(patch, "0123456789"))
	n, err := strconv.Atoi(patch[:digits])
	return ok && err == nil && n <= 5
}

// nodes looks at alarms and at the cluster.
func (e *examination) nodes() {
	var all []apiNode
	err := fetchAll(e.ctx, e.m, "monitoring", "/api/nodes", "name,running,mem_alarm,disk_free_alarm,partitions", false, func(n apiNode) { all = append(all, n) })
	if err != nil {
		e.unknown("alarms and cluster", err)
		return
	}
	alarms, apart, down := 0, 0, 0
	for _, n := range all {
		switch {
		case !n.Running:
			down++
			e.wrong("node "+n.Name, "start it, or take it out of the cluster: rabbitmqctl forget_cluster_node", "it does not run")
			continue
		case n.Memory:
			alarms++
			e.wrong("alarm on node "+n.Name, "give it more memory, or find what uses it: rabbitmq-diagnostics memory_breakdown", "it is low on memory, and the broker accepts no messages")
		case n.Disk:
			alarms++
			e.wrong("alarm on node "+n.Name, "free disk space there, or lower disk_free_limit", "it is low on disk space, and the broker accepts no messages")
		}
		if len(n.Partitions) > 0 {
			apart++
			e.wrong("node "+n.Name, "restart the nodes of the smaller part, and set cluster_partition_handling to pause_minority", "it has lost contact with %s", some(n.Partitions))
		}
	}
	if alarms+apart+down == 0 {
		e.ok("alarms and cluster", "%d nodes, no alarm, none apart", len(all))
	}
	if len(all) > 1 && olderThan(e.version, 4, 3) {
		e.ok("partition handling", "%d nodes; the API does not tell how they handle a partition. With the default, ignore, the parts of a cluster stay apart: "+
			"see rabbitmq-diagnostics environment, and set cluster_partition_handling = pause_minority", len(all))
	}
}

// flags looks for the feature flag that delays on quorum queues need.
func (e *examination) flags() {
	if !olderThan(e.version, 4, 0) {
		return // it can't be missing
	}
	state := ""
	err := fetchAll(e.ctx, e.m, "administrator", "/api/feature-flags", "", false, func(f apiFlag) {
		if f.Name == "stream_queue" {
			state = f.State
		}
	})
	switch {
	case err != nil:
		e.unknown("feature flag stream_queue", err)
	case state != "enabled":
		e.wrong("feature flag stream_queue", "rabbitmqctl enable_feature_flag stream_queue",
			"it is %s: quorum queues pass delayed messages on at most once, and may lose some", cmp.Or(driver.OneLine(state, 50), "not there"))
	default:
		e.ok("feature flag stream_queue", "enabled")
	}
}

// unknown notes what could not be read. That is no fault of the broker's.
func (e *examination) unknown(check string, err error) {
	e.ok(check, "unknown: %s; to know it, %s", err, fixOf(err))
}

// delayOf is the delay of a queue that is named by one.
func delayOf(name string) (delay time.Duration, ok bool) {
	if !isRetryName(name) {
		return 0, false
	}
	delay, err := time.ParseDuration(name[strings.LastIndex(name, retryInfix)+len(retryInfix):])
	return delay, err == nil
}
