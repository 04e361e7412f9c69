package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// An Endpoint serves a service's transport, such as one in memory, to operators in other processes: JSON over HTTP.
// Configure it, then call Start, or Handler for a server of your own.
//
//	GET  /health                          state of the bus's groups; 503 where one is degraded
//	GET  /groups, /topics, /doctor        as leat groups, topics and doctor
//	GET  /tail?pattern=order.>            records, a line each, until the client goes
//	POST /publish                         a record
//	GET  /poison/{group}?after=ID&limit=N full records, a line each: N, or fewer that have 8 MiB together
//	GET  /poison/{group}/{id}             a full record
//	POST /poison/{group}/replay, …/rm     {"ids":[…]} → {"done":N,"missing":"…"}
//	POST /poison/{group}/put              {"records":[…]} → {"missing":"…"}
//	GET  /poison/{group}/what-if          {"undoes":true} where a dry run undoes all that the handler does
//	POST /poison/{group}/what-if          {"ids":[…]} → how each would go, a line each
//
// The service's outbox is one of the groups. An error is {"error":"…"} with a status that says whose it is. Records are
// in the wire form of [Record].
type Endpoint struct {
	// Addr is where to listen: a unix socket by its path, like /run/shop/leat.sock or unix:/run/shop/leat.sock, or
	// host:port. TCP needs a token, and an address that other machines reach needs a certificate, too.
	Addr string
	// Token is what clients send as "Authorization: Bearer …", of at least 16 characters. A unix socket needs none: only
	// the user of the process can open it.
	Token string
	// Cert and Key are PEM files of a TLS certificate, with its chain, and of its key.
	Cert, Key string
	Bus       *bus.Bus
	// DryRunner tries poisoned messages; nil if the endpoint offers no dry run.
	DryRunner *LocalDryRunner
	Logger    *slog.Logger
}

// Handler returns the endpoint without its address, for a server of one's own. With a token it serves only requests that
// carry it. Without one it serves only requests to localhost or a loopback address: a web page that reaches the endpoint
// by a host name of its own is refused.
func (a Endpoint) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, do := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /health":                 a.health,
		"GET /groups":                 a.groups,
		"GET /topics":                 a.topics,
		"GET /doctor":                 a.doctor,
		"GET /tail":                   a.tail,
		"POST /publish":               a.publish,
		"GET /poison/{group}":         a.list,
		"GET /poison/{group}/{id}":    a.get,
		"POST /poison/{group}/replay": a.replay,
		"POST /poison/{group}/rm":     a.remove,
		"POST /poison/{group}/put":    a.put,

		"GET /poison/{group}/what-if":  a.undoes,
		"POST /poison/{group}/what-if": a.dryRun,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := do(w, r); err != nil {
				refuse(w, err)
			}
		})
	}
	return a.guard(mux)
}

// Limits of requests.
const (
	maxBody     = 32 << 20 // bytes of a request's body
	largeBody   = 1 << 20  // bytes from which on a body counts as large
	largeBodies = 2        // large bodies that are read at once; others wait
	bodyTimeout = time.Minute
	// closeTimeout bounds how long the rest of a refused request is read. Without it the client may lose the error.
	closeTimeout = time.Second
)

// guard lets authorized requests through, with a bounded body.
func (a Endpoint) guard(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + a.Token))
	wrong, large := newWrongTokens(), make(chan struct{}, largeBodies)
	check := func(r *http.Request) error {
		have := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if a.Token != "" {
			if err := wrong.check(r.RemoteAddr, subtle.ConstantTimeCompare(want[:], have[:]) == 1); err != nil {
				return err
			}
		} else if host := hostname(r.Host); host != "localhost" && !isLoopback(host) {
			return &statusError{http.StatusForbidden, "call it by its loopback address"}
		}
		contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		// Reading is not free of effects either: RabbitMQ's poison queues are read by taking and putting back.
		case site != "" && site != "none" && site != "same-origin", new(http.CrossOriginProtection).Check(r) != nil:
			return &statusError{http.StatusForbidden, "requests from web pages of other sites are refused"}
		case r.Method == http.MethodPost && contentType != "application/json":
			return &statusError{http.StatusUnsupportedMediaType, "post application/json"}
		case r.Method != http.MethodPost && r.ContentLength != 0:
			return &statusError{http.StatusBadRequest, r.Method + " takes no body"}
		case r.ContentLength > maxBody:
			return errTooLarge()
		}
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := check(r); err != nil {
			refuse(w, err)
			return
		}
		if r.ContentLength < 0 || r.ContentLength > largeBody {
			select {
			case large <- struct{}{}:
				defer func() { <-large }()
			case <-r.Context().Done():
				return
			}
		}
		if r.ContentLength != 0 {
			// The server lifts the deadline when the body has been read to its end.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		next.ServeHTTP(w, r)
	})
}

func errTooLarge() error {
	return &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is over %d MiB; send less at once", maxBody>>20)}
}

// statusError is an error with its HTTP status.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

type errorBody struct {
	Error string `json:"error"`
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if known, ok := errors.AsType[*statusError](err); ok {
		status = known.status
	}
	if _, ok := errors.AsType[*UnknownGroupError](err); ok || errors.Is(err, driver.ErrNotFound) {
		status = http.StatusNotFound
	}
	if errors.Is(err, driver.ErrUnroutable) {
		status = http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/json")
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", strconv.Itoa(int(wrongTokenEvery/time.Second)))
	}
	w.Header().Set("Connection", "close") // the body may not have been read
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(closeTimeout))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(errorBody{err.Error()})
}

// answer writes lines of JSON.
func answer[T any](w http.ResponseWriter, lines ...T) error {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	for _, line := range lines {
		if err := encoder.Encode(line); err != nil {
			return nil //nolint:nilerr // the client has gone; there is nobody to tell
		}
	}
	return nil
}

func (a Endpoint) inspector() (driver.Inspector, error) {
	inspector, ok := WithOutbox(a.Bus.Transport(), a.Bus.Outbox()).(driver.Inspector)
	if !ok {
		return nil, &statusError{http.StatusNotImplemented, "this transport shows operators nothing but poison queues"}
	}
	return inspector, nil
}

// healthBody is a group's health.
type healthBody struct {
	Group    string            `json:"group"`
	State    bus.State         `json:"state"`
	Degraded map[string]string `json:"degraded,omitempty"`
}

func (a Endpoint) health(w http.ResponseWriter, _ *http.Request) error {
	lines, degraded := []healthBody{}, false
	for _, h := range a.Bus.Health() {
		lines = append(lines, healthBody(h))
		degraded = degraded || len(h.Degraded) > 0
	}
	w.Header().Set("Content-Type", "application/json")
	if degraded {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	return answer(w, lines...)
}

func (a Endpoint) groups(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	all, err := inspector.Groups(r.Context())
	if err != nil {
		return err
	}
	return answer(w, each(all, DescribeGroup)...)
}

func (a Endpoint) topics(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	all, err := inspector.Topics(r.Context())
	if err != nil {
		return err
	}
	return answer(w, each(all, func(t driver.TopicInfo) Topic { return Topic(t) })...)
}

// doctor also tells what the bus knows of its groups.
func (a Endpoint) doctor(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	findings := inspector.Diagnose(r.Context())
	for _, h := range a.Bus.Health() {
		f := driver.Finding{Check: "health of " + h.Group, Text: string(h.State)}
		for _, part := range slices.Sorted(maps.Keys(h.Degraded)) {
			f.Err = errors.Join(f.Err, fmt.Errorf("%s: %s", part, h.Degraded[part]))
			f.Fix = "see the service's log, and what it depends on"
		}
		findings = append(findings, f)
	}
	return answer(w, each(findings, DescribeFinding)...)
}

func (a Endpoint) tail(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	pattern := r.URL.Query().Get("pattern")
	if err := driver.ValidatePattern(pattern); err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodHead {
		return nil // it would never end
	}
	out := http.NewResponseController(w)
	if err := out.Flush(); err != nil {
		return err
	}
	encoder := json.NewEncoder(w)
	_ = inspector.Tail(r.Context(), pattern, func(topic string, msg *message.Message) error {
		if err := encoder.Encode(Carry(topic, msg)); err != nil {
			return err
		}
		return out.Flush()
	}) // it ends with the client or the service
	return nil
}

func (a Endpoint) publish(w http.ResponseWriter, r *http.Request) error {
	var record Record
	if err := read(r, &record); err != nil {
		return err
	}
	m, err := record.Message()
	if err == nil {
		err = driver.ValidateTopic(record.Topic)
	}
	if err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	driver.ClearFault(m.Message.Metadata)
	if err := a.Bus.Transport().Publish(r.Context(), record.Topic, m.Message); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

// read decodes a request's body, which is one JSON value.
func read(r *http.Request, body any) error {
	decoder := json.NewDecoder(r.Body)
	if err := decoder.Decode(body); err != nil {
		return unreadable(err)
	}
	return readEnd(decoder)
}

// readEnd reads to the end of the body, where nothing may follow.
func readEnd(decoder *json.Decoder) error {
	switch _, err := decoder.Token(); {
	case err == nil:
		return &statusError{http.StatusBadRequest, "body: there is more than one JSON value; send one"}
	case !errors.Is(err, io.EOF):
		return unreadable(err)
	}
	return nil
}

func unreadable(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errTooLarge()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &statusError{http.StatusRequestTimeout, fmt.Sprintf("the body did not arrive within %s", bodyTimeout)}
	}
	return &statusError{http.StatusBadRequest, "body: " + err.Error()}
}

// readRecords decodes {"records":[…]} one record at a time.
func readRecords(r *http.Request) (msgs []driver.PoisonedMessage, err error) {
	decoder := json.NewDecoder(r.Body)
	for _, want := range []json.Token{json.Delim('{'), "records", json.Delim('[')} {
		token, err := decoder.Token()
		if err != nil {
			return nil, unreadable(err)
		}
		if token != want {
			return nil, &statusError{http.StatusBadRequest, `body: write {"records":[…]}`}
		}
	}
	for decoder.More() {
		var record Record
		if err := decoder.Decode(&record); err != nil {
			return nil, unreadable(err)
		}
		m, err := record.Message()
		if err == nil && m.Topic() == "" {
			err = fmt.Errorf("record %d has no topic; export writes it", len(msgs)+1)
		}
		if err != nil {
			return nil, &statusError{http.StatusBadRequest, err.Error()}
		}
		msgs = append(msgs, m)
	}
	for range 2 { // ] and }
		token, err := decoder.Token()
		if err != nil {
			return nil, unreadable(err)
		}
		if _, ok := token.(json.Delim); !ok {
			return nil, &statusError{http.StatusBadRequest, `body: write {"records":[…]} with nothing beside the records`}
		}
	}
	return msgs, readEnd(decoder)
}

// queue returns the poison queue of a group that is there.
func (a Endpoint) queue(r *http.Request) (string, driver.PoisonQueue, error) {
	group, transport := r.PathValue("group"), WithOutbox(a.Bus.Transport(), a.Bus.Outbox())
	if inspector, ok := transport.(driver.Inspector); ok {
		if _, err := FindGroups(r.Context(), inspector, group); err != nil {
			return group, nil, err
		}
	}
	return group, transport.PoisonQueue(group), nil
}

func (a Endpoint) list(w http.ResponseWriter, r *http.Request) error {
	group, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit < 1 || limit > 10*pageSize {
		limit = pageSize
	}
	sent, bytes := 0, 0
	err = pages(r.Context(), queue, r.URL.Query().Get("after"), func(page []driver.PoisonedMessage) (bool, error) {
		for _, m := range page[:min(len(page), limit-sent)] {
			if err := answer(w, Full(group, m)); err != nil {
				return false, err
			}
			sent, bytes = sent+1, bytes+sizeOf(m)
		}
		return sent < limit && bytes < pageBytes, nil
	})
	if sent > 0 {
		return nil // after an error, the client asks for the next page and gets the error then
	}
	w.Header().Set("Content-Type", "application/json")
	return err
}

func (a Endpoint) get(w http.ResponseWriter, r *http.Request) error {
	group, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	m, err := queue.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, Full(group, m))
}

// bulkBody is which messages to move.
type bulkBody struct {
	IDs []string `json:"ids"`
}

// doneBody is what was moved, and what was not there.
type doneBody struct {
	Done    int    `json:"done"`
	Missing string `json:"missing,omitempty"`
}

func (a Endpoint) replay(w http.ResponseWriter, r *http.Request) error {
	return a.move(w, r, driver.PoisonQueue.Replay)
}

func (a Endpoint) remove(w http.ResponseWriter, r *http.Request) error {
	return a.move(w, r, driver.PoisonQueue.Drop)
}

func (a Endpoint) move(w http.ResponseWriter, r *http.Request, do func(driver.PoisonQueue, context.Context, ...string) (int, error)) error {
	_, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	var body bulkBody
	if err := read(r, &body); err != nil {
		return err
	}
	n, err := do(queue, r.Context(), body.IDs...)
	done := doneBody{Done: n}
	if errors.Is(err, driver.ErrNotFound) {
		done.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return answer(w, done)
}

// undoesBody is whether a dry run leaves nothing behind.
type undoesBody struct {
	Undoes bool `json:"undoes"`
}

func (a Endpoint) undoes(w http.ResponseWriter, r *http.Request) error {
	if a.DryRunner == nil {
		return errNoDryRunner()
	}
	undoes, err := a.DryRunner.Undoes(r.Context(), r.PathValue("group"))
	if err != nil {
		return err
	}
	return answer(w, undoesBody{undoes})
}

func errNoDryRunner() error {
	return &statusError{http.StatusNotImplemented, "this endpoint does not offer a dry run; the service's own binary may"}
}

func (a Endpoint) dryRun(w http.ResponseWriter, r *http.Request) error {
	if a.DryRunner == nil {
		return errNoDryRunner()
	}
	group, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	var body bulkBody
	if err := read(r, &body); err != nil {
		return err
	}
	wanted, msgs := make(map[string]bool, len(body.IDs)), []driver.PoisonedMessage{}
	for _, id := range body.IDs {
		wanted[id] = true
	}
	err = Each(r.Context(), queue, Filter{}, func(m driver.PoisonedMessage) error {
		if wanted[m.ID] {
			msgs = append(msgs, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	results, err := a.DryRunner.DryRun(r.Context(), group, msgs)
	if err != nil {
		return err
	}
	return answer(w, results...)
}

// put writes messages; one with an id replaces the message of that id.
func (a Endpoint) put(w http.ResponseWriter, r *http.Request) error {
	_, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	msgs, err := readRecords(r)
	if err != nil {
		return err
	}
	var done doneBody
	if err = queue.Put(r.Context(), msgs...); errors.Is(err, driver.ErrNotFound) {
		done.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return answer(w, done)
}
