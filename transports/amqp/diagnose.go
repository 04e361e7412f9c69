package amqp

import (
	"cmp"
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

	// The oldest RabbitMQ whose quorum queues dead-letter at least once, which delays need.
	oldestMajor, oldestMinor = 3, 10
)

// A diagnosis is one call of Diagnose over AMQP.
type diagnosis struct {
	*inspection
	findings []driver.Finding
}

// Diagnose opens a connection and checks what a service needs: the login, the broker's version, whether it accepts messages, the
// user's rights, the exchange, the queues for delays, and the queues of this process's groups with their arguments. To check the
// right to declare something, it declares what leat declares at start, or nothing with declare=false. It publishes in a
// transaction that it rolls back, and takes no message of a group. In a process without groups it declares nothing, and
// reads all groups, bindings, policies and alarms from the management API. Messages in poison queues are reported, but not as an
// error.
func (t *Transport) Diagnose(ctx context.Context) []driver.Finding {
	d := new(diagnosis)
	reached := driver.Finding{
		Check: "reach the broker and log in",
		Fix:   "start the broker, or correct the URL's host, port, user, password, virtual host and TLS options",
	}
	err := t.inspector.inspect(ctx, "diagnose", func(i *inspection) error {
		d.inspection = i
		reached.Text, reached.Fix = i.where(), ""
		d.findings = append(d.findings, reached, i.version())
		d.findings = append(d.findings, d.accepts())
		if !i.topology.serves() {
			found, missing := d.examine()
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

// withoutManagement returns the finding that the management API can't be read. It is a fault only if the URL names one.
func (d *diagnosis) withoutManagement(missing error) driver.Finding {
	f := driver.Finding{Check: "management API"}
	if d.topology.cfg.Management != "" {
		f.Err, f.Fix = missing, fixOf(missing)
		return f
	}
	f.Text = fmt.Sprintf("groups, bindings, policies and alarms are not checked: %s; to have them checked, %s", missing, fixOf(missing))
	return f
}

// passive reports whether the checks declare nothing, not even what a service declares at start.
func (d *diagnosis) passive() bool {
	return !d.topology.serves() || d.topology.cfg.Declare == DeclareNothing
}

// add adds the result of a check. It returns the error if the connection was lost, and adds it to the finding otherwise.
func (d *diagnosis) add(f driver.Finding, err error, fix string) error {
	if err != nil {
		if d.conn.IsClosed() || d.ctx.Err() != nil {
			return err
		}
		if conflict, ok := errors.AsType[*ConflictError](err); ok {
			fix = conflict.fix()
		}
		if !d.topology.serves() && isCode(err, amqp.NotFound) {
			err, fix = errors.New("it does not exist"), fixStart
		}
		f.Err, f.Text, f.Fix = err, "", fix
	}
	d.findings = append(d.findings, f)
	return nil
}

// where describes the broker and the user.
func (i *inspection) where() string {
	c := i.topology.cfg
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
	f.Text = cmp.Or(f.Text, "unknown")
	if product == "RabbitMQ" && i.topology.cfg.QueueType == Quorum && olderThan(version, oldestMajor, oldestMinor) {
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

// accepts checks whether the user may publish: in a transaction the broker checks the right when it gets a message, and routes
// it at the commit, which never follows. It uses its own connection, because a broker that accepts no messages stops reading.
func (d *diagnosis) accepts() driver.Finding {
	f := driver.Finding{Check: "publish", Text: "the broker accepts messages, and the user may send them"}
	ctx, stop := context.WithTimeout(d.ctx, diagnosePatience)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := d.inspect(ctx, "publish", func(i *inspection) error {
		cancelWhenBlocked(i.conn, cancel)
		exchanges := []string{""} // redeliveries and poisoned messages are published to the default exchange
		if !i.topology.watermill() {
			exchanges = append(exchanges, i.topology.cfg.ExchangeName)
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
		f.Fix = "free memory or disk space of the broker; until then publishers wait, and consumers go on"
	case isCode(err, amqp.AccessRefused):
		f.Fix = "grant the user the right to write to the exchange and to the default exchange (amq.default)"
	default:
		f.Fix = "read the broker's log"
	}
	return f
}

var errBlocked = errors.New("the broker accepts no messages")

// cancelWhenBlocked calls cancel when the broker stops reading from the connection.
func cancelWhenBlocked(conn *amqp.Connection, cancel context.CancelCauseFunc) {
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() {
		for b := range blocked { // until the connection is closed
			if b.Active {
				cancel(fmt.Errorf("%w: %s", errBlocked, driver.OneLine(b.Reason, maxNameBytes)))
			}
		}
	}()
}

func takeBack(ctx context.Context, ch *amqp.Channel, exchange string) error {
	if err := ch.Tx(); err != nil {
		return err
	}
	const mandatory = false
	if err := ch.PublishWithContext(ctx, exchange, "leat.diagnose", mandatory, immediate, amqp.Publishing{}); err != nil {
		return err
	}
	return ch.TxRollback()
}

// exchange checks the exchange as the transport does at start.
func (d *diagnosis) exchange() error {
	if d.topology.watermill() {
		return nil
	}
	f := driver.Finding{Check: "exchange " + d.topology.cfg.ExchangeName, Text: "a durable topic exchange, " + d.declared()}
	err := d.do(func(ch *amqp.Channel) error {
		dec := d.declarer(ch)
		dec.exchange(d.topology.cfg.ExchangeName, amqp.ExchangeTopic, nil)
		return dec.err
	})
	return d.add(f, err, "grant the user the right to configure it, or declare it as another user and use declare=false")
}

func (d *diagnosis) declarer(ch *amqp.Channel) *declarer {
	return &declarer{ch: ch, passive: d.passive()}
}

func (d *diagnosis) declared() string {
	if d.passive() {
		return "which exists"
	}
	return "which exists, and the user may configure it"
}

// delays checks the queues for delays, and reports their messages.
func (d *diagnosis) delays() error {
	f := driver.Finding{Check: "queues for delays " + oldDelayName(d.topology.cfg.QueueType, "*")}
	waiting := 0
	for _, set := range []levels{d.topology.redelivering(), d.topology.publishing()} {
		err := d.do(func(ch *amqp.Channel) error { return set.declare(d.ctx, d.declarer(ch)) })
		if d.passive() && (isCode(err, amqp.NotFound) || isCode(err, amqp.AccessRefused)) {
			continue // processes declare them for their first group, or for the first message with a delay
		}
		if err != nil {
			return d.add(f, err, "grant the user the rights to configure, write and read leat.*, or declare them as another user and use declare=false")
		}
		for n := range delayLevels {
			q, _, err := d.peek(set.queue(n))
			if err != nil {
				return err
			}
			waiting += q.Messages
		}
	}
	undelivered := d.topology.redelivering().undelivered()
	kept, _, err := d.peek(undelivered)
	if err != nil {
		return err
	}
	if f.Text = fmt.Sprintf("%d messages wait in them", waiting); d.hidden {
		f.Text = "this user has no right to see how many messages wait in them"
	}
	if kept.Messages > 0 {
		f.Text += fmt.Sprintf("; %d redeliveries to groups whose queues were deleted are in %s", kept.Messages, undelivered)
	}
	if err := d.add(f, nil, ""); err != nil {
		return err
	}
	return d.oldDelays()
}

// oldDelays reports the queues that earlier versions used for delays; see migrate.go.
func (d *diagnosis) oldDelays() error {
	near, there, err := d.peek(oldDelayName(d.topology.cfg.QueueType, "near"))
	if err != nil || !there {
		return err
	}
	f := driver.Finding{Check: "queues for delays of an older version"}
	left := near.Messages
	for n := range oldDelayLevels {
		q, _, err := d.peek(oldDelayName(d.topology.cfg.QueueType, fmt.Sprintf("%02d", n)))
		if err != nil {
			return err
		}
		left += q.Messages
	}
	switch {
	case near.Consumers > 0:
		f.Text = fmt.Sprintf("messages that wait in them: %d; consumers, of older processes or of one that moves the messages: %d", left, near.Consumers)
	case left > 0:
		f.Text = fmt.Sprintf("%d messages wait in them; a process that consumes any group moves each at its time", left)
	default:
		f.Text = fmt.Sprintf("they are empty: delete the queues and exchanges %s and %s",
			oldDelayName(d.topology.cfg.QueueType, "00 to .19"), oldDelayName(d.topology.cfg.QueueType, "near"))
	}
	return d.add(f, nil, "")
}

// groups checks the groups of this process.
func (d *diagnosis) groups() error {
	for _, s := range d.topology.subscriptions() {
		if err := d.group(s); err != nil {
			return err
		}
	}
	return nil
}

// group checks one group.
func (d *diagnosis) group(s driver.Subscription) error {
	f := driver.Finding{Check: "group " + s.Group}
	for _, queue := range d.topology.queues(s) {
		if err := d.mayRead(queue); err != nil {
			return d.add(f, err, "grant the user the right to read the group's queues, or connect as the user of the service that has the group")
		}
	}
	info, there, err := d.count(s)
	if err != nil || !there { // the consumer declares it, or logs why it can't
		return err
	}
	f.Text = describe(s.Order.String(), info)
	if !d.passive() {
		if err := d.conflictWith(s); err != nil {
			return d.add(f, err, "")
		}
	}
	text, err := d.parked(s)
	if err != nil {
		return d.add(f, err, "start a process of the group: it moves them to the group's queue")
	}
	f.Text += text
	if d.passive() { // else a consumer declares them
		for _, queue := range d.topology.own(s) {
			_, there, err := d.queue(queue)
			if err != nil {
				return err
			}
			if !there {
				return d.add(f, fmt.Errorf("queue %q does not exist", queue), "declare it; its arguments are those that a process with declare=true gives it")
			}
		}
	}
	return d.add(f, nil, "")
}

// parked reports the parked messages of the group. They are an error if no process will read them.
func (d *diagnosis) parked(s driver.Subscription) (text string, err error) {
	n := 0
	for _, name := range append(parkedNames(s.Group), legacyQueueName(s.Group)) {
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

// formerQueues describes the queues of an ordered group that only an earlier version uses.
func formerQueues(group string) string {
	return fmt.Sprintf(", queues %s and %s are of an earlier version: delete them when no process of it runs, and the first is empty",
		legacyQueueName(group), leadName(group))
}

func describe(order string, info driver.GroupInfo) string {
	parts := []string{"it is " + order, fmt.Sprintf("%d messages are ready", info.Waiting), fmt.Sprintf("%d processes consume", info.Consumers)}
	if info.Poisoned > 0 {
		parts = append(parts, fmt.Sprintf("%d are poisoned: look at them, and replay or drop them", info.Poisoned))
	}
	return strings.Join(parts, ", ")
}

// mayRead checks the right to consume: its arguments are invalid, which the broker refuses after it has checked the right, so
// nothing is delivered.
func (i *inspection) mayRead(queue string) error {
	err := i.do(func(ch *amqp.Channel) error {
		_, err := ch.Consume(queue, "", autoAck, exclusive, noLocal, noWait, amqp.Table{"x-priority": "none"})
		return err
	})
	switch {
	case err == nil: // the broker does not check the argument
		i.close()
		return nil
	case isCode(err, amqp.PreconditionFailed), isCode(err, amqp.NotFound):
		return nil
	case isCode(err, amqp.AccessRefused):
		return fmt.Errorf("the user may not read queue %q: %w", queue, err)
	}
	return err
}
