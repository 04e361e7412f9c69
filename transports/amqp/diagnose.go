package amqp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// diagnosePatience is how long the broker may take to answer a publish: it reads none when it runs
	// out of memory or disk.
	diagnosePatience = 5 * time.Second

	// The oldest RabbitMQ whose quorum queues pass a message on before they forget it, which delays need.
	oldestMajor, oldestMinor = 3, 10
)

// diagnosis is what was found so far.
type diagnosis struct {
	*inspection
	findings []driver.Finding
}

// Diagnose connects anew and checks what a service needs: the login, the broker's version, that it accepts
// messages, the user's rights, the exchange, the queues for delays, and of each group of this process the
// queues and their arguments. A check of a right to make something makes what leat makes at start anyway,
// with declare=false nothing; a publish is taken back before the broker routes it; no message of a group
// is taken. In a process without groups it makes nothing, and learns what it can from the management API: all groups,
// bindings, policies and alarms. Messages that wait in poison queues are told and are no error.
func (t *Transport) Diagnose(ctx context.Context) []driver.Finding {
	d := new(diagnosis)
	reached := driver.Finding{
		Check: "reach the broker and log in",
		Fix:   "start the broker, or correct the URL's host, port, user, password, virtual host and TLS options",
	}
	err := t.inspect(ctx, "diagnose", func(i *inspection) error {
		d.inspection = i
		reached.Text, reached.Fix = i.where(), ""
		d.findings = append(d.findings, reached, i.version())
		d.findings = append(d.findings, t.accepts(ctx))
		if !t.serves() {
			version, _ := i.conn.Properties["version"].(string)
			found, missing := t.examine(ctx, version)
			if missing == nil {
				d.findings = append(d.findings, found...)
				return nil
			}
			d.findings = append(d.findings, d.withoutManagement(missing))
		}
		for _, check := range []func() error{d.exchange, d.delays, d.groups} {
			if err := check(); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case d.inspection == nil:
		reached.Err = err
		d.findings = append(d.findings, reached)
	case err != nil:
		d.findings = append(d.findings, driver.Finding{Check: "everything else", Err: fmt.Errorf("not checked: %w", err), Fix: "try again"})
	}
	return d.findings
}

// withoutManagement says what is not checked without the management API. It is a fault only where the URL names one.
func (d *diagnosis) withoutManagement(missing error) driver.Finding {
	f := driver.Finding{Check: "management API"}
	if d.t.cfg.Management != "" {
		f.Err, f.Fix = missing, fixOf(missing)
		return f
	}
	f.Text = fmt.Sprintf("groups, bindings, policies and alarms are not checked: %s; to have them checked, %s", missing, fixOf(missing))
	return f
}

// passive reports whether the checks make nothing, not even what a service makes at start.
func (d *diagnosis) passive() bool { return !d.t.serves() || d.t.cfg.Declare == DeclareNothing }

// add notes a check's end. The error is the finding's, unless the connection went with it.
func (d *diagnosis) add(f driver.Finding, err error, cure string) error {
	if err != nil {
		if d.conn.IsClosed() || d.ctx.Err() != nil {
			return err
		}
		if conflict, ok := errors.AsType[*ConflictError](err); ok {
			cure = conflict.cure()
		}
		if !d.t.serves() && isCode(err, amqp.NotFound) {
			err, cure = errors.New("it is not there"), fixStart
		}
		f.Err, f.Text, f.Fix = err, "", cure
	}
	d.findings = append(d.findings, f)
	return nil
}

// where says what answered, and to whom.
func (i *inspection) where() string {
	c := i.t.cfg
	user, secure := "user "+c.Username, "not encrypted"
	if c.Auth == External {
		user = "logged in by certificate"
	}
	if c.UseTLS {
		secure = "TLS"
	}
	return fmt.Sprintf("%s, virtual host %q, %s, %s", c.Host, c.Vhost, user, secure)
}

func (i *inspection) version() driver.Finding {
	product, _ := i.conn.Properties["product"].(string)
	version, _ := i.conn.Properties["version"].(string)
	f := driver.Finding{Check: "version of the broker", Text: strings.TrimSpace(product + " " + version)}
	if f.Text == "" {
		f.Text = "unknown"
	}
	if product == "RabbitMQ" && i.t.cfg.QueueType == Quorum && olderThan(version, oldestMajor, oldestMinor) {
		f.Err = fmt.Errorf("%s: delays on quorum queues need %d.%d or later", f.Text, oldestMajor, oldestMinor)
		f.Fix = "upgrade the broker, or use the option queue=classic"
	}
	return f
}

func olderThan(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	x, errX := strconv.Atoi(parts[0])
	y, errY := strconv.Atoi(parts[1])
	return errX == nil && errY == nil && (x < major || x == major && y < minor)
}

// accepts publishes and takes back: in a transaction the broker checks the right at once, and routes
// at the commit, which never comes. It has a connection of its own, because a broker that accepts no
// messages stops reading.
func (t *Transport) accepts(ctx context.Context) driver.Finding {
	f := driver.Finding{Check: "publish", Text: "the broker accepts messages, and the user may send them"}
	ctx, stop := context.WithTimeout(ctx, diagnosePatience)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := t.inspect(ctx, "publish", func(i *inspection) error {
		blocked := i.conn.NotifyBlocked(make(chan amqp.Blocking, 1))
		go func() {
			for b := range blocked { // until the connection is closed
				if b.Active {
					cancel(fmt.Errorf("%w: %s", errBlocked, driver.OneLine(b.Reason, maxNameBytes)))
				}
			}
		}()
		exchanges := []string{""} // redeliveries and poisoned messages go by the default exchange
		if !t.topology.watermill() {
			exchanges = append(exchanges, t.cfg.ExchangeName)
		}
		for _, exchange := range exchanges {
			if err := i.do(func(ch *amqp.Channel) error { return takeBack(ctx, ch, exchange) }); err != nil {
				return fmt.Errorf("exchange %q: %w", exchange, err)
			}
		}
		return nil
	})
	if err == nil {
		return f
	}
	f.Err, f.Text = err, ""
	switch {
	case errors.Is(err, errBlocked):
		f.Fix = "see to the broker's memory and disk; publishers wait until then, and consumers go on"
	case isCode(err, amqp.AccessRefused):
		f.Fix = "grant the user the right to write to the exchange and to the default exchange (amq.default)"
	default:
		f.Fix = "see what the broker's log says"
	}
	return f
}

var errBlocked = errors.New("the broker accepts no messages")

func takeBack(ctx context.Context, ch *amqp.Channel, exchange string) error {
	if err := ch.Tx(); err != nil {
		return err
	}
	const mandatory, immediate = false, false
	if err := ch.PublishWithContext(ctx, exchange, "leat.diagnose", mandatory, immediate, amqp.Publishing{}); err != nil {
		return err
	}
	return ch.TxRollback()
}

// exchange checks the exchange as the transport does at start.
func (d *diagnosis) exchange() error {
	if d.t.topology.watermill() {
		return nil
	}
	f := driver.Finding{Check: "exchange " + d.t.cfg.ExchangeName, Text: "a durable topic exchange, " + d.declared()}
	err := d.do(func(ch *amqp.Channel) error {
		dec := d.declarer(ch)
		dec.exchange(d.t.cfg.ExchangeName, amqp.ExchangeTopic, nil)
		return dec.err
	})
	return d.add(f, err, "let the user configure it, or let somebody who may make it and use declare=false")
}

func (d *diagnosis) declarer(ch *amqp.Channel) *declarer {
	return &declarer{ch: ch, passive: d.passive()}
}

func (d *diagnosis) declared() string {
	if d.passive() {
		return "which is there"
	}
	return "which is there, and the user may configure it"
}

// delays checks the queues for delays, and tells of what is in them.
func (d *diagnosis) delays() error {
	topology := d.t.topology
	f := driver.Finding{Check: "queues for delays " + oldDelayName(d.t.cfg.QueueType, "*")}
	waiting := 0
	for _, way := range []levels{topology.redelivering(), topology.publishing()} {
		there, err := d.has(way)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		err = d.do(func(ch *amqp.Channel) error { return way.declare(d.ctx, d.declarer(ch)) })
		if err != nil {
			return d.add(f, err, "let the user configure, write and read leat.*, or let somebody who may make them and use declare=false")
		}
		for n := range delayLevels {
			q, _, err := d.queue(way.queue(n))
			if err != nil {
				return err
			}
			waiting += q.Messages
		}
	}
	undelivered := topology.redelivering().undelivered()
	kept, _, err := d.queue(undelivered)
	if err != nil {
		return err
	}
	f.Text = fmt.Sprintf("%d messages wait in them", waiting)
	if kept.Messages > 0 {
		f.Text += fmt.Sprintf("; %d redeliveries to groups whose queues are gone are kept in %s", kept.Messages, undelivered)
	}
	if err := d.add(f, nil, ""); err != nil {
		return err
	}
	return d.oldDelays()
}

// has reports whether a way through delays is there, or is made. Processes make it for their first group, or the first
// delay of a publisher.
func (d *diagnosis) has(way levels) (there bool, err error) {
	if !d.passive() {
		return true, nil
	}
	err = d.do(func(ch *amqp.Channel) error {
		return ch.ExchangeDeclarePassive(way.entrance(), amqp.ExchangeHeaders, durable, autoDelete, internal, noWait, nil)
	})
	if isCode(err, amqp.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// oldDelays tells of the queues that delays went through before; see migrate.go.
func (d *diagnosis) oldDelays() error {
	near, there, err := d.queue(oldDelayName(d.t.cfg.QueueType, "near"))
	if err != nil || !there {
		return err
	}
	f := driver.Finding{Check: "queues for delays of an older version"}
	left := near.Messages
	for n := range oldDelayLevels {
		q, _, err := d.queue(oldDelayName(d.t.cfg.QueueType, fmt.Sprintf("%02d", n)))
		if err != nil {
			return err
		}
		left += q.Messages
	}
	switch {
	case near.Consumers > 0:
		f.Text = fmt.Sprintf("%d messages wait in them, and %d consumers, of older processes or of one that moves the messages", left, near.Consumers)
	case left > 0:
		f.Text = fmt.Sprintf("%d messages wait in them; a process that consumes any group moves each at its time", left)
	default:
		f.Text = fmt.Sprintf("they are empty: delete the queues and exchanges %s and %s",
			oldDelayName(d.t.cfg.QueueType, "00 to .19"), oldDelayName(d.t.cfg.QueueType, "near"))
	}
	return d.add(f, nil, "")
}

// groups checks the groups of this process.
func (d *diagnosis) groups() error {
	for _, s := range d.t.topology.subscriptions() {
		if err := d.group(s); err != nil {
			return err
		}
	}
	return nil
}

// group checks one group.
func (d *diagnosis) group(s driver.Subscription) error {
	info, there, err := d.count(s)
	if err != nil || !there { // the consumer makes it, or says why it can't
		return err
	}
	f := driver.Finding{Check: "group " + s.Group, Text: describe(s.Order.String(), info)}
	if !d.passive() {
		if err := d.conflictWith(s); err != nil {
			return d.add(f, err, "")
		}
	}
	for _, queue := range d.t.topology.queues(s) {
		if err := d.mayRead(queue); err != nil {
			return d.add(f, err, "let the user read the group's queues, or leave them to another service's user")
		}
	}
	text, err := d.parked(s)
	if err != nil {
		return d.add(f, err, "start a process of the group: it moves them to the group's queue")
	}
	f.Text += text
	if d.passive() { // else a consumer makes them
		for _, queue := range d.t.topology.own(s) {
			_, there, err := d.queue(queue)
			if err != nil {
				return err
			}
			if !there {
				return d.add(f, fmt.Errorf("queue %q is not there", queue), "make it; its arguments are those that a process with declare=true gives it")
			}
		}
	}
	return d.add(f, nil, "")
}

// parked says what is parked in the group. It is an error if nobody will read it.
func (d *diagnosis) parked(s driver.Subscription) (text string, err error) {
	n := 0
	for _, name := range append(parkedNames(s.Group), heldName(s.Group)) {
		q, _, err := d.queue(name)
		if err != nil {
			return "", err
		}
		n += q.Messages
	}
	switch {
	case n == 0:
	case s.Order == driver.Unordered:
		return "", fmt.Errorf("%d messages from a time when the group was ordered are parked, and nobody consumes them", n)
	default:
		text = fmt.Sprintf(", %d more are parked", n)
	}
	_, former, err := d.queue(leadName(s.Group))
	if former {
		text += formerQueues(s.Group)
	}
	return text, err
}

// formerQueues says what is to become of the queues of an ordered group that only an earlier version has.
func formerQueues(group string) string {
	return fmt.Sprintf(", queues %s and %s are of an earlier version: delete them when no process of it runs, and the first is empty",
		heldName(group), leadName(group))
}

func describe(order string, info driver.GroupInfo) string {
	parts := []string{"it is " + order, fmt.Sprintf("%d messages are ready", info.Waiting), fmt.Sprintf("%d processes consume", info.Consumers)}
	if info.Poisoned > 0 {
		parts = append(parts, fmt.Sprintf("%d are poisoned: look at them, and replay or drop them", info.Poisoned))
	}
	return strings.Join(parts, ", ")
}

// mayRead asks to consume in a way that the broker refuses, after it has checked the right to: nothing
// is delivered.
func (i *inspection) mayRead(queue string) error {
	const autoAck, noLocal = false, false
	err := i.do(func(ch *amqp.Channel) error {
		_, err := ch.Consume(queue, "", autoAck, exclusive, noLocal, noWait, amqp.Table{"x-priority": "none"})
		return err
	})
	switch {
	case err == nil: // a broker that takes anything
		i.close()
		return nil
	case isCode(err, amqp.PreconditionFailed), isCode(err, amqp.NotFound):
		return nil
	case isCode(err, amqp.AccessRefused):
		return fmt.Errorf("the user may not read queue %q: %w", queue, err)
	}
	return err
}
