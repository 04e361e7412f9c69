package amqp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// An examination is one call of Diagnose over the management API. It declares and consumes nothing.
type examination struct {
	*survey
	ctx       context.Context
	m         *management
	version   string
	exchanges map[string]apiExchange
	findings  []driver.Finding
}

// examine returns the findings, or an error if the API does not answer.
func (d *diagnosis) examine() (findings []driver.Finding, err error) {
	version, _ := d.conn.Properties["version"].(string)
	err = d.withManagement(d.ctx, func(ctx context.Context, m *management, s *survey) error {
		e := &examination{survey: s, ctx: ctx, m: m, version: version, exchanges: make(map[string]apiExchange)}
		exchanges, err := fetchAll[apiExchange](ctx, m, "management", m.inVhost("exchanges"), "name,type,durable", false)
		if err != nil {
			return err
		}
		for _, x := range exchanges {
			e.exchanges[x.Name] = x
		}
		groups := e.groups()
		e.ok("management API", "%s lists %d groups", m.where(), len(groups))
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
		findings = e.findings
		return nil
	})
	return findings, err
}

func (e *examination) ok(check, format string, args ...any) {
	e.findings = append(e.findings, driver.Finding{Check: check, Text: fmt.Sprintf(format, args...)})
}

func (e *examination) wrong(check, fix, format string, args ...any) {
	e.findings = append(e.findings, driver.Finding{Check: check, Err: fmt.Errorf(format, args...), Fix: fix})
}

const fixStart = "start or restart a service of this exchange that may declare it: it declares what is missing"

// events checks the exchange that events are published to.
func (e *examination) events() {
	if e.topology.watermill() {
		return
	}
	name := e.topology.cfg.ExchangeName
	check := "exchange " + name
	x, there := e.exchanges[name]
	switch {
	case !there:
		e.wrong(check, fixStart, "it does not exist, and services can't publish")
	case x.Type != amqp.ExchangeTopic || !x.Durable:
		e.wrong(check, "choose another exchange with the option exchange, or delete this one", "it is a %s exchange (durable: %t); it must be a durable topic exchange", x.Type, x.Durable)
	default:
		e.ok(check, "a durable topic exchange")
	}
}

// group checks one group: its queues, their arguments and bindings, and its consumers.
func (e *examination) group(g surveyed) {
	check, info := "group "+g.name, e.info(g)
	t := e.topologyOf(g)
	good := true
	fault := func(fix, format string, args ...any) {
		good = false
		e.wrong(check, fix, format, args...)
	}
	e.queuesOf(g, t, fault)
	earlier, parked := e.queues[legacyQueueName(g.name)].all(), e.parked(g.name)
	switch {
	case len(g.topics) == 0:
		fault("restart a process of the group: it binds the queue to its topics; if the group is retired, delete it with leat groups rm",
			"queue %q is not bound to exchange %q: the group gets no messages", g.name, t.cfg.ExchangeName)
	case g.ordered && earlier+parked > 0 && info.Consumers == 0:
		fault("start a process of the group: it takes the lead", "%d messages are parked, and no process leads", earlier+parked)
	case !g.ordered && earlier+parked > 0:
		fault("start a process of the group: it moves them to the group's queue",
			"%d messages from a time when the group was ordered are parked, and nobody consumes them", earlier+parked)
	}
	if info.Consumers == 0 {
		fault("start the service that has the group; if it is retired, delete the group with leat groups rm, or unbind its queue to keep the messages",
			"no process consumes it, and %d messages wait", info.Waiting)
	}
	if good {
		order := driver.Unordered.String()
		if g.ordered {
			order = "ordered"
		}
		text := describe(order, info)
		if delays := e.delaysOf(g); len(delays) > 0 {
			text += ", delays with queues are " + strings.Join(delays, ", ") + ": when a delay is not in the retry policy any more, delete its queue once it is empty"
		}
		if _, former := e.queues[leadName(g.name)]; former {
			text += formerQueues(g.name)
		}
		e.ok(check, "%s", text)
	}
}

// delaysOf returns the delays for which the group has queues, except the one in which all delays of a group end.
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

// queuesOf checks the queues that a group should have.
func (e *examination) queuesOf(g surveyed, t *topology, fault func(fix, format string, args ...any)) {
	wanted := e.wantedQueues(g, t)
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		q, there := e.queues[name]
		if !there {
			fault("restart a process of the group: it declares the queue", "queue %q does not exist", name)
			continue
		}
		if differs := foreign(q, wanted[name]); differs != "" {
			fault("delete the queue when it is empty; a process of the group declares it again with the right arguments", "queue %q has other arguments: %s", name, differs)
		}
		if retry := retryInfix + delayText(delayUnit); strings.HasSuffix(name, retry) {
			key, exit := strings.TrimSuffix(name, retry), t.redelivering().exit()
			if !e.bound[apiBinding{Source: exit, To: name, Kind: "queue", Key: key}] {
				fault("restart a process of the group: it makes the binding", "queue %q is not bound to exchange %q: long delays end in %q", name, exit, t.redelivering().undelivered())
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
		for _, name := range append([]string{retryName(q.Name, delayUnit)}, e.retries[q.Name]...) {
			delay, _ := delayOf(name)
			wanted[name] = retryArgs(t.cfg.QueueType, delay, q.Name)
		}
	}
	if g.ordered {
		for _, name := range append(parkedNames(g.name), keysName(g.name)) {
			wanted[name] = t.thrownOutTo(poisonName(g.name))
		}
	}
	return wanted
}

// topologyOf returns the topology with the type of the group's queues.
func (e *examination) topologyOf(g surveyed) *topology {
	queueType := QueueType(e.queues[poisonName(g.name)].Type)
	if queueType == "" && !e.topology.watermill() {
		queueType = QueueType(g.queues[0].Type)
	}
	return e.topology.forQueues(queueType)
}

// foreign describes the arguments of a queue that are not those that leat declares.
func foreign(q apiQueue, wanted amqp.Table) string {
	if wanted == nil {
		wanted = amqp.Table{}
	}
	var differs []string
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		found, there := q.Arguments[name]
		if text := fmt.Sprint(wanted[name]); !there {
			differs = append(differs, fmt.Sprintf("%s is missing; it should be %s", name, text))
		} else if fmt.Sprint(found) != text {
			differs = append(differs, fmt.Sprintf("%s is %v; it should be %s", name, found, text))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(q.Arguments)) {
		if _, ok := wanted[name]; !ok {
			differs = append(differs, fmt.Sprintf("%s is %v; it should not be set", name, q.Arguments[name]))
		}
	}
	return driver.OneLine(strings.Join(differs, "; "), 500)
}

// delays checks the levels for delays that exist, or that a group needs.
func (e *examination) delays(groups []surveyed) {
	types := make(map[QueueType]bool) // and whether a group needs redeliveries
	for _, g := range groups {
		types[e.topologyOf(g).cfg.QueueType] = true
	}
	for _, queueType := range []QueueType{Quorum, Classic} {
		t := e.topology.forQueues(queueType)
		if types[queueType] || e.anyOf(t.redelivering()) {
			e.checkLevels(t.redelivering())
		}
		if e.anyOf(t.publishing()) {
			e.checkLevels(t.publishing())
		}
		if kept := e.queues[t.redelivering().undelivered()].all(); kept > 0 {
			e.wrong("queue "+t.redelivering().undelivered(), "start the groups that they are for, and move the messages to their queues with a shovel, or delete them",
				"%d redeliveries to groups whose queues were deleted are in it", kept)
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

// checkLevels checks each level.
func (e *examination) checkLevels(l levels) {
	check := "queues for delays " + l.name("*")
	fix := "start a process that consumes a group: it declares what is missing within five minutes"
	if l.direction == toExchange {
		fix = "publish a message with a delay: this declares what is missing"
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
			e.wrong(check, "delete the queue when it is empty; it is declared again with the right arguments", "queue %q has other arguments: %s", name, differs)
		}
	}
	if len(missing) > 0 {
		e.wrong(check, fix, "missing: %s", some(missing))
		return
	}
	e.ok(check, "%d messages wait in them", waiting)
}

// some lists a few names and the number of the others.
func some(names []string) string {
	const most = 4
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// orphans checks for messages of groups whose queue does not exist.
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
		e.wrong("group "+group, "start a process of the group: it declares the queue and handles them; if the group is retired, delete these queues",
			"its queue does not exist, and messages are left: %s", some(left[group]))
	}
}

// oldRegistries checks for queues in which older versions list their groups.
func (e *examination) oldRegistries() {
	for _, name := range slices.Sorted(maps.Keys(e.queues)) {
		if strings.HasPrefix(name, oldRegistryPrefix) {
			e.ok("queue "+name, "older versions list groups in it, and this one does not read it: delete it when none of them runs")
		}
	}
}

// sparesOurs is an example of a pattern for policies.
const sparesOurs = `'^(?!leat\.)(?!.*\.(poison|keys|parked\..*|retry\..*)$)'`

// safeLimit is the lowest delivery limit that deletes no message, because leat rewrites messages in time.
const safeLimit = 10

// policies checks for policies that delete messages which leat has promised to keep.
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
		e.wrong("policy "+d.policy, "remove "+d.key+" from it, or exclude leat's queues by its pattern, such as "+sparesOurs,
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

// does describes the effect of a policy's key on a queue, "" if it does no harm.
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
		return fmt.Sprintf("deletes messages that were read so often; a limit of %d or more is safe", safeLimit)
	case "dead-letter-exchange", "dead-letter-routing-key":
		if q.Arguments["x-"+key] != nil || kept {
			return "" // arguments take precedence
		}
		if q.text("x-dead-letter-exchange") != "" {
			return "sends delayed messages elsewhere"
		}
		return "sends messages that a limit removes to a place that leat does not read"
	}
	return ""
}

// singleActive checks for a fault of RabbitMQ 4.3.0 to 4.3.5.
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
			"on RabbitMQ %s a quorum queue with a single active consumer may stop delivering after a consumer timed out: %s", e.version, some(queues))
	}
}

func standsStill(version string) bool {
	patch, ok := strings.CutPrefix(version, "4.3.")
	digits := len(patch) - len(strings.TrimLeft(patch, "0123456789"))
	n, err := strconv.Atoi(patch[:digits])
	return ok && err == nil && n <= 5
}

// nodes checks the alarms and the cluster.
func (e *examination) nodes() {
	all, err := fetchAll[apiNode](e.ctx, e.m, "monitoring", "/api/nodes", "name,running,mem_alarm,disk_free_alarm,partitions", false)
	if err != nil {
		e.unknown("alarms and cluster", err)
		return
	}
	alarms, separate, down := 0, 0, 0
	for _, n := range all {
		switch {
		case !n.Running:
			down++
			e.wrong("node "+n.Name, "start it, or remove it from the cluster: rabbitmqctl forget_cluster_node", "it does not run")
			continue
		case n.Memory:
			alarms++
			e.wrong("alarm on node "+n.Name, "give it more memory, or find what uses it: rabbitmq-diagnostics memory_breakdown", "it is low on memory, and the broker accepts no messages")
		case n.Disk:
			alarms++
			e.wrong("alarm on node "+n.Name, "free disk space there, or lower disk_free_limit", "it is low on disk space, and the broker accepts no messages")
		}
		if len(n.Partitions) > 0 {
			separate++
			e.wrong("node "+n.Name, "restart the nodes of the smaller part, and set cluster_partition_handling to pause_minority", "it has lost contact with %s", some(n.Partitions))
		}
	}
	if alarms+separate+down == 0 {
		e.ok("alarms and cluster", "%d nodes, no alarm, no partition", len(all))
	}
	if len(all) > 1 && olderThan(e.version, 4, 3) {
		e.ok("partition handling", "%d nodes; the API does not show how they handle a partition. With the default, ignore, the parts of a cluster stay separate: "+
			"check rabbitmq-diagnostics environment, and set cluster_partition_handling = pause_minority", len(all))
	}
}

// flags checks the feature flag that delays on quorum queues need.
func (e *examination) flags() {
	if !olderThan(e.version, 4, 0) {
		return // it can't be missing
	}
	all, err := fetchAll[apiFlag](e.ctx, e.m, "administrator", "/api/feature-flags", "", false)
	state := ""
	for _, f := range all {
		if f.Name == "stream_queue" {
			state = f.State
		}
	}
	switch {
	case err != nil:
		e.unknown("feature flag stream_queue", err)
	case state != "enabled":
		e.wrong("feature flag stream_queue", "rabbitmqctl enable_feature_flag stream_queue",
			"it is %s: quorum queues pass delayed messages on at most once, and may lose some", cmp.Or(driver.OneLine(state, 50), "missing"))
	default:
		e.ok("feature flag stream_queue", "enabled")
	}
}

// unknown adds a check whose result could not be read. That is not a fault of the broker.
func (e *examination) unknown(check string, err error) {
	e.ok(check, "unknown: %s; to check it, %s", err, fixOf(err))
}
