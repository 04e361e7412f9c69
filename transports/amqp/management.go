package amqp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
)

const (
	managementConnect = 2 * time.Second
	managementWhole   = 10 * time.Second
	managementMost    = 32 << 20 // bytes of one answer
	managementPage    = 500      // queues in one answer
	managementPages   = 2000

	managementPort    = "15672"
	managementPortTLS = "15671"
)

// management reads RabbitMQ's management API, for operators' tools. Nothing that it reads is trusted, and it changes nothing.
type management struct {
	bases          []*url.URL // one for each host, without credentials
	user, password string
	vhost          string
	client         *http.Client
	most           int64
}

// newManagement returns the API of the URL's option, or else one on each of the broker's hosts.
func newManagement(c Config) (*management, error) {
	m := &management{user: c.Username, password: c.Password, vhost: c.Vhost, most: cmp.Or(c.managementMost, managementMost)}
	if c.Management != "" {
		base, err := parseManagement(c.Management)
		if err != nil {
			return nil, err
		}
		if base.User != nil {
			m.user = base.User.Username()
			m.password, _ = base.User.Password()
		}
		base.User = nil
		m.bases = []*url.URL{base}
	} else {
		scheme, port := "http", managementPort
		if c.UseTLS {
			scheme, port = "https", managementPortTLS
		}
		for host := range strings.SplitSeq(c.Host, ",") {
			name, _, _ := net.SplitHostPort(host)
			m.bases = append(m.bases, &url.URL{Scheme: scheme, Host: net.JoinHostPort(name, port)})
		}
	}
	dialer := &net.Dialer{Timeout: managementConnect}
	wire := &http.Transport{DialContext: dialer.DialContext, TLSHandshakeTimeout: managementConnect, MaxResponseHeaderBytes: 64 << 10}
	if m.bases[0].Scheme == "https" {
		secure, err := c.tlsConfig(m.bases[0].Host)
		if err != nil {
			return nil, err
		}
		secure.ServerName = "" // that of the host
		if c.Management == "" {
			secure.ServerName = c.ServerName
		}
		wire.TLSClientConfig = secure
	}
	m.client = &http.Client{Transport: wire, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return m, nil
}

// parseManagement parses the option. An error does not contain it, because it may have a password.
func parseManagement(raw string) (*url.URL, error) {
	u, err := urlopt.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("management: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("management: not a URL of a management API; write it like http://host:15672, or with its own user " +
			"http://user:password%40host:15672")
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), ""
	return u, nil
}

// where returns the API's URL without credentials.
func (m *management) where() string { return urlopt.Show(m.bases[0]) }

// A ManagementError is the reason why RabbitMQ's management API can't be read.
type ManagementError struct {
	Where  string // its URL, without user and password
	Reason string
	fix    string
}

func (e *ManagementError) Error() string {
	return fmt.Sprintf("management API at %s: %s", e.Where, e.Reason)
}

// Fix returns what to do about it.
func (e *ManagementError) Fix() string { return e.fix }

const (
	fixReach = "enable it on the broker (rabbitmq-plugins enable rabbitmq_management) and give the user the tag management, or for alarms monitoring " +
		"(rabbitmqctl set_user_tags USER monitoring), or set its address with the URL's option management=http://host:15672"
	fixLogin = "correct the user and the password, or set others for the API with management=http://user:password%40host:15672"
)

func (m *management) failure(fix, format string, args ...any) *ManagementError {
	return &ManagementError{Where: m.where(), Reason: driver.OneLine(fmt.Sprintf(format, args...), 500), fix: fix}
}

// get decodes the answer of the first host that can be reached. Later calls try that host first.
func (m *management) get(ctx context.Context, tag, path string, query url.Values, into any) error {
	var failed error
	for i, base := range m.bases {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String()+path+"?"+query.Encode(), nil)
		if err != nil {
			return m.failure(fixReach, "invalid address")
		}
		request.SetBasicAuth(m.user, m.password)
		response, err := m.client.Do(request) //nolint:bodyclose // answer closes it
		if err != nil {
			if wrapped, ok := errors.AsType[*url.Error](err); ok {
				err = wrapped.Err // without the URL
			}
			if failed = m.unreachable(ctx, err); ctx.Err() != nil {
				break
			}
			continue
		}
		m.bases[0], m.bases[i] = m.bases[i], m.bases[0]
		return m.answer(ctx, tag, path, response, into)
	}
	return failed
}

func (m *management) unreachable(ctx context.Context, err error) error {
	if timeout, ok := errors.AsType[net.Error](err); ctx.Err() != nil || ok && timeout.Timeout() {
		return m.failure(fixReach, "no answer in time")
	}
	return m.failure(fixReach, "it can't be reached: %s", err)
}

func (m *management) answer(ctx context.Context, tag, path string, response *http.Response, into any) error {
	defer func() { _ = response.Body.Close() }()
	body := &bounded{from: response.Body, left: m.most}
	decoder := json.NewDecoder(body)
	decoder.UseNumber()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		var said struct{ Reason string }
		body.left = 64 << 10
		_ = decoder.Decode(&said)
		switch reason := strings.ToLower(said.Reason); {
		case strings.HasPrefix(reason, "not ") && strings.Contains(reason, "user"), response.StatusCode == http.StatusForbidden:
			return m.failure(fmt.Sprintf("give the user the tag: rabbitmqctl set_user_tags %s %s; or set a user who has it with management=http://user:password%%40host:15672",
				driver.OneLine(m.user, 100), tag), "user %s is not allowed to read it: it needs the tag %s", m.user, tag)
		case strings.Contains(reason, "login failed"), strings.Contains(reason, "authori"), said.Reason == "":
			return m.failure(fixLogin, "it refuses the login of user %s", m.user)
		default:
			return m.failure(fixLogin, "it refuses user %s: %s", m.user, said.Reason)
		}
	case http.StatusNotFound:
		return m.failure(fixReach, "there is no %s: it is no management API of RabbitMQ, or the virtual host %q does not exist", path, m.vhost)
	default:
		return m.failure(fixReach, "it answers %s", strconv.Itoa(response.StatusCode)+" "+http.StatusText(response.StatusCode))
	}
	err := decoder.Decode(into)
	switch {
	case err == nil:
		return nil
	case body.left < 0:
		return m.failure("use a separate virtual host for leat", "an answer has more than %d MiB", m.most>>20)
	case ctx.Err() != nil:
		return m.failure(fixReach, "no answer in time")
	default:
		return m.failure(fixReach, "its answer can't be read; is it RabbitMQ's?")
	}
}

// bounded is a reader that fails after a number of bytes.
type bounded struct {
	from io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errors.New("too much")
	}
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("too much")
	}
	return n, err
}

func (m *management) inVhost(kind string) string {
	return "/api/" + kind + "/" + url.PathEscape(m.vhost)
}

// fetchAll returns the rows of a list, of all pages if the API has pages for it.
func fetchAll[T any](ctx context.Context, m *management, tag, path, columns string, paged bool) (all []T, err error) {
	query := url.Values{}
	if columns != "" {
		query.Set("columns", columns)
	}
	if !paged {
		err := m.get(ctx, tag, path, query, &all)
		return all, err
	}
	query.Set("page_size", strconv.Itoa(managementPage))
	for page, pages := 1, 1; page <= min(pages, managementPages); page++ {
		query.Set("page", strconv.Itoa(page))
		var answer struct {
			Items []T `json:"items"`
			Pages int `json:"page_count"`
		}
		if err := m.get(ctx, tag, path, query, &answer); err != nil {
			return nil, err
		}
		if answer.Items == nil {
			return nil, m.failure(fixReach, "its answer can't be read; is it RabbitMQ's?")
		}
		all, pages = append(all, answer.Items...), answer.Pages
	}
	return all, nil
}

// object is a table of the broker. The API may write [] for an empty one.
type object map[string]any

func (o *object) UnmarshalJSON(text []byte) error {
	*o = nil
	if len(text) == 0 || text[0] != '{' {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	var table map[string]any
	if err := d.Decode(&table); err != nil {
		return err
	}
	*o = table
	return nil
}

type apiQueue struct {
	Name           string `json:"name"`
	Type           string `json:"type"`
	Durable        bool   `json:"durable"`
	Exclusive      bool   `json:"exclusive"`
	Arguments      object `json:"arguments"`
	Ready          *int   `json:"messages_ready"` // nil in the first seconds after the queue was declared
	Unacked        *int   `json:"messages_unacknowledged"`
	Consumers      *int   `json:"consumers"`
	Policy         string `json:"policy"`
	OperatorPolicy string `json:"operator_policy"`
	Effective      object `json:"effective_policy_definition"`
}

const queueColumns = "name,type,durable,exclusive,arguments,messages_ready,messages_unacknowledged,consumers,policy,operator_policy,effective_policy_definition"

func (q apiQueue) text(argument string) string {
	text, _ := q.Arguments[argument].(string)
	return text
}

func (q apiQueue) ready() int     { return deref(q.Ready) }
func (q apiQueue) consumers() int { return deref(q.Consumers) }
func (q apiQueue) all() int       { return deref(q.Ready) + deref(q.Unacked) }

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return max(*n, 0)
}

type apiBinding struct {
	Source string `json:"source"`
	To     string `json:"destination"`
	Kind   string `json:"destination_type"`
	Key    string `json:"routing_key"`
}

type apiExchange struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Durable bool   `json:"durable"`
}

type apiNode struct {
	Name       string   `json:"name"`
	Running    bool     `json:"running"`
	Memory     bool     `json:"mem_alarm"`
	Disk       bool     `json:"disk_free_alarm"`
	Partitions []string `json:"partitions"`
}

type apiFlag struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

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
func (t *Transport) survey(ctx context.Context) (s *survey, err error) {
	err = t.withManagement(ctx, func(_ context.Context, _ *management, found *survey) error {
		s = found
		return nil
	})
	return s, err
}

// withManagement calls do with the API and a survey. It uses at most half of the caller's time, so that something else can be
// tried if the API does not answer.
func (t *Transport) withManagement(ctx context.Context, do func(context.Context, *management, *survey) error) error {
	if !t.enter() {
		return driver.ErrClosed
	}
	t.active.Add(-1) // Close need not wait
	m, err := newManagement(t.cfg)
	if err != nil {
		return &ManagementError{Where: "https", Reason: err.Error(), fix: "correct the URL's TLS options"}
	}
	defer m.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, patienceFor(ctx))
	defer cancel()
	s, err := m.survey(ctx, t.topology.topology)
	if err == nil {
		err = t.complete(ctx, s)
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
func (t *Transport) complete(ctx context.Context, s *survey) error {
	var fresh []string
	for name, q := range s.queues {
		if q.Ready == nil || q.Consumers == nil {
			fresh = append(fresh, name)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	return t.inspect(ctx, "count", func(i *inspection) error {
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
