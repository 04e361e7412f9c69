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
func newManagement(c *Config) (*management, error) {
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
