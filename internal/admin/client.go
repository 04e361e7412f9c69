package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// A Client is a service's transport over its admin endpoint: everything except subscribing. Its methods
// may be called concurrently.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

var (
	_ driver.Transport = (*Client)(nil)
	_ driver.Inspector = (*Client)(nil)
)

// Dial reaches an admin endpoint by its URL: unix:///path, https://host:port, or http://host:port on the same machine.
// Certificates are verified against the roots of the system, to which SSL_CERT_FILE adds on Unix. Dial blocks until the
// endpoint has answered or ctx is done.
func Dial(ctx context.Context, base *url.URL, token string) (*Client, error) {
	return dial(ctx, base, token, &http.Transport{})
}

func dial(ctx context.Context, base *url.URL, token string, transport *http.Transport) (*Client, error) {
	switch {
	case base.User != nil || base.RawQuery != "":
		return nil, errURL()
	case base.Scheme == "unix":
		path := filepath.FromSlash(base.Path)
		if base.Host != "" || !filepath.IsAbs(path) {
			return nil, fmt.Errorf("the URL of a unix socket is unix:// and its absolute path, like unix://%s", exampleSocket)
		}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		base = &url.URL{Scheme: "http", Host: "localhost"}
	case base.Path != "" && base.Path != "/":
		return nil, errURL()
	case base.Scheme == "http" && base.Hostname() != "localhost" && !isLoopback(base.Hostname()):
		return nil, fmt.Errorf("http:// would send the token and the messages to %s in clear text; write https://", base.Host)
	}
	c := &Client{base: base, token: token, http: &http.Client{Transport: transport}}
	if _, err := lines[healthBody](c.do(ctx, http.MethodGet, "health", nil, nil)); err != nil {
		c.http.CloseIdleConnections()
		return nil, err
	}
	return c, nil
}

func errURL() error {
	return errors.New("the URL of an admin endpoint is unix:///path or http://host:port; set the token by LEAT_ADMIN_TOKEN")
}

// Capabilities returns none: they are unknown here, and a Client can't subscribe.
func (c *Client) Capabilities() driver.Capabilities { return driver.Capabilities{Poison: true} }

// Subscribe returns an error: operators do not subscribe.
func (c *Client) Subscribe(context.Context, driver.Subscription) (driver.Receiver, error) {
	return nil, fmt.Errorf("admin endpoint: subscribe: %w", driver.ErrUnsupported)
}

// Close closes idle connections.
func (c *Client) Close(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// Carry returns a record of a message and its topic.
func Carry(topic string, msg *message.Message) Record {
	r := Full("", driver.PoisonedMessage{Message: msg})
	r.Topic, r.Headers[driver.HeaderFaultTopic] = topic, topic
	return r
}

// Publish publishes the messages one by one.
func (c *Client) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		_, err := lines[struct{}](c.do(ctx, http.MethodPost, "publish", nil, Carry(topic, msg)))
		if refused, ok := errors.AsType[*statusError](err); ok && refused.status == http.StatusUnprocessableEntity {
			return &driver.UnroutableError{Topics: []string{topic}, Strict: true}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Groups returns the groups of the service's transport.
func (c *Client) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	all, err := lines[Group](c.do(ctx, http.MethodGet, "groups", nil, nil))
	return each(all, Group.info), err
}

// SetPaused pauses a group in the service's process, or resumes it. The error matches [driver.ErrNotFound] if the process has no
// such group.
func (c *Client) SetPaused(ctx context.Context, group string, paused bool) error {
	verb := "resume"
	if paused {
		verb = "pause"
	}
	_, err := lines[struct{}](c.do(ctx, http.MethodPost, (&url.URL{}).JoinPath("groups", group, verb).Path, nil, struct{}{}))
	return err
}

// Topics returns the topics of the service's transport.
func (c *Client) Topics(ctx context.Context) ([]driver.TopicInfo, error) {
	all, err := lines[Topic](c.do(ctx, http.MethodGet, "topics", nil, nil))
	return each(all, func(t Topic) driver.TopicInfo { return driver.TopicInfo(t) }), err
}

// Diagnose returns the service's findings.
func (c *Client) Diagnose(ctx context.Context) []driver.Finding {
	all, err := lines[Finding](c.do(ctx, http.MethodGet, "doctor", nil, nil))
	if err != nil {
		return []driver.Finding{{Check: "admin endpoint", Err: err, Fix: "start the service with LEAT_ADMIN, or correct the URL and LEAT_ADMIN_TOKEN"}}
	}
	return each(all, Finding.finding)
}

// Undoes implements [DryRunner].
func (c *Client) Undoes(ctx context.Context, group string) (bool, error) {
	all, err := lines[undoesBody](c.do(ctx, http.MethodGet, (&remoteQueue{c, group}).path("what-if"), nil, nil))
	return len(all) > 0 && all[0].Undoes, err
}

// DryRun makes the service try the messages with its own handlers.
func (c *Client) DryRun(ctx context.Context, group string, msgs []driver.PoisonedMessage) ([]DryRunResult, error) {
	ids := make([]string, len(msgs))
	for i, m := range msgs {
		ids[i] = m.ID
	}
	return lines[DryRunResult](c.do(ctx, http.MethodPost, (&remoteQueue{c, group}).path("what-if"), nil, bulkBody{ids}))
}

// Tail reads copies until ctx is done.
func (c *Client) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	body, err := c.do(ctx, http.MethodGet, "tail", url.Values{"pattern": {pattern}}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	for decoder := json.NewDecoder(body); ; {
		var r Record
		if err := decoder.Decode(&r); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("admin endpoint: the service has ended the tail: %w", err)
		}
		m, err := r.Message()
		if err != nil {
			return err
		}
		driver.ClearFault(m.Message.Metadata)
		if err := fn(r.Topic, m.Message); err != nil {
			return err
		}
	}
}

// PoisonQueue returns the poison queue of a group.
func (c *Client) PoisonQueue(group string) driver.PoisonQueue { return &remoteQueue{c, group} }

// remoteQueue is a poison queue behind the endpoint.
type remoteQueue struct {
	*Client
	group string
}

func (q *remoteQueue) path(rest ...string) string {
	return (&url.URL{}).JoinPath(append([]string{"poison", q.group}, rest...)...).Path
}

func (q *remoteQueue) List(ctx context.Context, after string, limit int) ([]driver.PoisonedMessage, error) {
	query := url.Values{"after": {after}, "limit": {strconv.Itoa(limit)}}
	return poisoned(lines[Record](q.do(ctx, http.MethodGet, q.path(), query, nil)))
}

func (q *remoteQueue) Get(ctx context.Context, id string) (driver.PoisonedMessage, error) {
	all, err := poisoned(lines[Record](q.do(ctx, http.MethodGet, q.path(id), nil, nil)))
	if err != nil || len(all) == 0 {
		return driver.PoisonedMessage{}, err
	}
	return all[0], nil
}

func poisoned(records []Record, err error) ([]driver.PoisonedMessage, error) {
	msgs := make([]driver.PoisonedMessage, len(records))
	for i, r := range records {
		if err == nil {
			msgs[i], err = r.Message()
		}
	}
	return msgs, err
}

func (q *remoteQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	return q.move(ctx, "replay", ids)
}

func (q *remoteQueue) Drop(ctx context.Context, ids ...string) (int, error) {
	return q.move(ctx, "rm", ids)
}

// idsAtOnce is how many messages one request moves: few enough to show progress, and for proxies that wait for a response.
const idsAtOnce = 10_000

func (q *remoteQueue) move(ctx context.Context, what string, ids []string) (done int, missing error) {
	for chunk := range slices.Chunk(ids, idsAtOnce) {
		n, err := q.post(ctx, what, bulkBody{chunk})
		done += n
		if err != nil && !errors.Is(err, driver.ErrNotFound) {
			return done, err
		}
		missing = cmp.Or(missing, err)
		driver.Progress(ctx, n)
	}
	return done, missing
}

// putAtOnce is how many bytes of records one request writes. A larger record has its own request.
const putAtOnce = maxBody / 4

func (q *remoteQueue) Put(ctx context.Context, msgs ...driver.PoisonedMessage) error {
	var batch []json.RawMessage
	var missing error
	size := 0
	send := func() error {
		_, err := q.post(ctx, "put", map[string][]json.RawMessage{"records": batch})
		if errors.Is(err, driver.ErrNotFound) {
			missing, err = errors.Join(missing, err), nil
		}
		batch, size = nil, 0
		return err
	}
	for _, m := range msgs {
		record, err := json.Marshal(Full(q.group, m))
		if err != nil {
			return err
		}
		if len(batch) > 0 && size+len(record) > putAtOnce {
			if err := send(); err != nil {
				return err
			}
		}
		batch, size = append(batch, record), size+len(record)
	}
	if err := send(); err != nil {
		return err
	}
	return missing
}

func (q *remoteQueue) post(ctx context.Context, what string, body any) (int, error) {
	all, err := lines[doneBody](q.do(ctx, http.MethodPost, q.path(what), nil, body))
	if err != nil || len(all) == 0 {
		return 0, err
	}
	if all[0].Missing != "" {
		err = fmt.Errorf("%s: %w", all[0].Missing, driver.ErrNotFound)
	}
	return all[0].Done, err
}

// Len counts by listing the groups.
func (q *remoteQueue) Len(ctx context.Context) (int, error) {
	groups, err := FindGroups(ctx, q.Client, q.group)
	if err != nil {
		return 0, err
	}
	return groups[0].Poisoned, nil
}

// do sends a request and returns the response's body, which the caller closes.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (io.ReadCloser, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(text)) //nolint:gosec // the operator says where to
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request) //nolint:gosec // the operator says where to
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return nil, fmt.Errorf("admin endpoint: %w; set the variable SSL_CERT_FILE to a PEM file with its authority, or with the certificate itself if that signs itself", err)
	}
	if err != nil {
		return nil, fmt.Errorf("admin endpoint: %w", err)
	}
	if response.StatusCode == http.StatusOK || response.StatusCode == http.StatusServiceUnavailable && path == "health" {
		return response.Body, nil
	}
	defer func() { _ = response.Body.Close() }()
	var refused errorBody
	if json.NewDecoder(response.Body).Decode(&refused) != nil || refused.Error == "" {
		refused.Error = "it answers " + response.Status + "; is it leat's admin endpoint?"
	}
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s: %w", refused.Error, driver.ErrNotFound)
	}
	return nil, &statusError{response.StatusCode, refused.Error}
}

// lines decodes a response of JSON lines.
func lines[T any](body io.ReadCloser, err error) (all []T, _ error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	for decoder := json.NewDecoder(body); ; {
		var line T
		err := decoder.Decode(&line)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("admin endpoint: %w", err)
		}
		all = append(all, line)
	}
}
