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
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// An Endpoint serves a service's transport, such as one in memory, to operators in other processes: JSON over HTTP.
// Configure it, then call Start, or Handler for a server of your own.
//
//	GET  /health                          state of the bus's groups; 503 if one is degraded
//	GET  /groups, /topics, /doctor        as leat groups, topics and doctor
//	POST /groups/{group}/pause, …/resume  {} → {}; this process takes no message of the group meanwhile
//	GET  /describe                        the service's wiring, as leat describe --json
//	GET  /tail?pattern=order.>            records, a line each, until the client disconnects
//	POST /publish                         a record
//	GET  /poison/{group}?after=ID&limit=N full records, a line each: at most N and about 8 MiB
//	GET  /poison/{group}/{id}             a full record
//	POST /poison/{group}/replay, …/rm     {"ids":[…]} → {"done":N,"missing":"…"}
//	POST /poison/{group}/put              {"records":[…]} → {"missing":"…"}
//	GET  /poison/{group}/what-if          {"undoes":true} if a dry run undoes all effects of the handler
//	POST /poison/{group}/what-if          {"ids":[…]} → the results of a dry run, a line each
//	     /console/                        pages for browsers, if there is a console
//
// The service's outbox is one of the groups. An error is {"error":"…"} with a 4xx status for a wrong request and a 5xx status otherwise. Records are
// in the wire form of [Record].
type Endpoint struct {
	// Addr is where to listen: a unix socket by its path, like /run/shop/leat.sock or unix:/run/shop/leat.sock, or
	// host:port. TCP needs a token, and an address that other machines can reach also needs a certificate.
	Addr string
	// Token has at least 16 characters. Clients send it as "Authorization: Bearer …". A unix socket needs none: only
	// the user of the process can open it.
	Token string
	// Cert and Key are PEM files of a TLS certificate, with its chain, and of its key.
	Cert, Key string
	Bus       *bus.Bus
	// DryRunner tries poisoned messages; nil if the endpoint offers no dry run.
	DryRunner *LocalDryRunner
	// Describer describes the service; nil if the endpoint does not.
	Describer *LocalDescriber
	// Console is served below /console/ to browsers, which send the token as the password of HTTP's basic authentication,
	// with any name; nil if the endpoint has none. It must check the origin of requests itself.
	Console http.Handler
	Logger  *slog.Logger
}

// An endpointHandler handles one kind of request. It returns an error to refuse it.
type endpointHandler func(http.ResponseWriter, *http.Request) error

// Handler returns the endpoint's handler, for your own server. With a token it serves only requests with that token.
// Without one it serves only requests to localhost or a loopback address, so that a web page can't access the endpoint
// by its own host name (DNS rebinding).
func (a Endpoint) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, do := range map[string]endpointHandler{
		"GET /health":                 a.health,
		"GET /groups":                 a.inspecting(a.groups),
		"POST /groups/{group}/pause":  a.setPaused(true),
		"POST /groups/{group}/resume": a.setPaused(false),
		"GET /topics":                 a.inspecting(a.topics),
		"GET /doctor":                 a.inspecting(a.doctor),
		"GET /describe":               a.describe,
		"GET /tail":                   a.inspecting(a.tail),
		"POST /publish":               a.publish,
		"GET /poison/{group}":         a.onQueue(a.list),
		"GET /poison/{group}/{id}":    a.onQueue(a.get),
		"POST /poison/{group}/replay": a.move(driver.PoisonQueue.Replay),
		"POST /poison/{group}/rm":     a.move(driver.PoisonQueue.Drop),
		"POST /poison/{group}/put":    a.onQueue(a.put),

		"GET /poison/{group}/what-if":  a.trying(a.undoes),
		"POST /poison/{group}/what-if": a.trying(a.onQueue(a.dryRun)),
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := do(w, r); err != nil {
				refuse(w, err)
			}
		})
	}
	if a.Console != nil {
		mux.Handle(consolePath, http.StripPrefix(strings.TrimSuffix(consolePath, "/"), a.Console))
	}
	return a.guard(mux)
}

// consolePath is the path of the console. The slash at its end makes relative links refer to paths below it.
const consolePath = "/console/"

// isConsole reports whether a request is one of a browser to the console.
func (a Endpoint) isConsole(r *http.Request) bool {
	return a.Console != nil && (strings.HasPrefix(r.URL.Path, consolePath) || r.URL.Path+"/" == consolePath)
}

// Limits of requests.
const (
	maxBody     = 32 << 20 // bytes of a request's body
	maxIDs      = 10 * idsAtOnce
	largeBody   = 1 << 20 // bytes from which a body counts as large
	largeBodies = 2       // large bodies that are read at once; others wait
	bodyTimeout = time.Minute
	// closeTimeout bounds how long the rest of a rejected request is read. If it is not read, the client may not get the error.
	closeTimeout = time.Second
)

// guard passes authorized requests to next, with a limited body.
func (a Endpoint) guard(next http.Handler) http.Handler {
	wrong, large := newWrongTokens(), make(chan struct{}, largeBodies)
	check := func(r *http.Request) error {
		if err := a.authorize(r, wrong); err != nil {
			return err
		}
		if a.isConsole(r) {
			return checkForm(r)
		}
		return checkCall(r)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'") // the console sets its own
		if err := check(r); err != nil {
			if a.isConsole(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="leat console: the admin token is the password", charset="UTF-8"`)
			}
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
			// The server removes the deadline after it has read the whole body.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		}
		next.ServeHTTP(w, r)
	})
}

// authorize checks the token or, without one, that the client calls the endpoint by a loopback address.
func (a Endpoint) authorize(r *http.Request, wrong *wrongTokens) error {
	if a.Token == "" {
		if !IsLocal(r.Host) {
			return &statusError{http.StatusForbidden, "call it by its loopback address"}
		}
		return nil
	}
	authorization := r.Header.Get("Authorization")
	if a.isConsole(r) {
		if authorization == "" { // not a guess: a browser sends the token after the server has asked for it
			return errWrongToken()
		}
		if _, password, ok := r.BasicAuth(); ok {
			authorization = "Bearer " + password
		}
	}
	want, have := sha256.Sum256([]byte("Bearer "+a.Token)), sha256.Sum256([]byte(authorization))
	return wrong.check(r.RemoteAddr, subtle.ConstantTimeCompare(want[:], have[:]) == 1)
}

// checkCall rejects requests of web pages, and bodies that are too large or not expected.
func checkCall(r *http.Request) error {
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	site := r.Header.Get("Sec-Fetch-Site")
	switch {
	// Reading has effects, too: RabbitMQ's poison queues are read by consuming and requeuing.
	case site != "" && site != "none" && site != "same-origin", new(http.CrossOriginProtection).Check(r) != nil:
		return &statusError{http.StatusForbidden, "requests from web pages of other sites are refused"}
	case r.Method == http.MethodPost && contentType != "application/json":
		return &statusError{http.StatusUnsupportedMediaType, "post application/json"}
	}
	return checkBody(r)
}

// checkForm rejects bodies that the console does not use.
func checkForm(r *http.Request) error {
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.Method == http.MethodPost && contentType != "application/x-www-form-urlencoded" {
		return &statusError{http.StatusUnsupportedMediaType, "post a form"}
	}
	return checkBody(r)
}

func checkBody(r *http.Request) error {
	switch {
	case r.Method != http.MethodPost && r.ContentLength != 0:
		return &statusError{http.StatusBadRequest, r.Method + " takes no body"}
	case r.ContentLength > maxBody:
		return errTooLarge()
	}
	return nil
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
	if status != http.StatusUnauthorized {
		w.Header().Del("WWW-Authenticate")
	}
	switch status {
	case http.StatusUnauthorized:
		if w.Header().Get("WWW-Authenticate") == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", strconv.Itoa(int(wrongTokenEvery/time.Second)))
	}
	w.Header().Set("Connection", "close") // the body may be unread
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(closeTimeout))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(errorBody{err.Error()})
}

// answer writes JSON lines.
func answer[T any](w http.ResponseWriter, lines ...T) error {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	for _, line := range lines {
		if err := encoder.Encode(line); err != nil {
			return nil //nolint:nilerr // the client has disconnected
		}
	}
	return nil
}

// inspecting returns a handler that needs an inspector.
func (a Endpoint) inspecting(do func(http.ResponseWriter, *http.Request, driver.Inspector) error) endpointHandler {
	return func(w http.ResponseWriter, r *http.Request) error {
		inspector, ok := WithOutbox(a.Bus.Transport(), a.Bus.Outbox()).(driver.Inspector)
		if !ok {
			return &statusError{http.StatusNotImplemented, "this transport can't list its groups"}
		}
		return do(w, r, inspector)
	}
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

func (a Endpoint) groups(w http.ResponseWriter, r *http.Request, inspector driver.Inspector) error {
	all, err := inspector.Groups(r.Context())
	if err != nil {
		return err
	}
	paused := make(map[string]string)
	for _, h := range a.Bus.Health() {
		paused[h.Group] = PausedBy(h.Degraded)
	}
	for i := range all {
		all[i].Paused = paused[all[i].Name]
	}
	return answer(w, each(all, DescribeGroup)...)
}

// setPaused returns the handler that pauses or resumes a group.
func (a Endpoint) setPaused(paused bool) endpointHandler {
	return func(w http.ResponseWriter, r *http.Request) error {
		var body struct{}
		if err := read(r, &body); err != nil {
			return err
		}
		group := r.PathValue("group")
		if err := checkHandlers(each(a.Bus.Handlers(), func(h bus.Handler) string { return a.Bus.GroupName(h.Name) }), group); err != nil {
			return err
		}
		if err := a.Bus.SetPaused(group, paused); err != nil {
			return err
		}
		return answer(w, struct{}{})
	}
}

func (a Endpoint) topics(w http.ResponseWriter, r *http.Request, inspector driver.Inspector) error {
	all, err := inspector.Topics(r.Context())
	if err != nil {
		return err
	}
	return answer(w, each(all, func(t driver.TopicInfo) Topic { return Topic(t) })...)
}

// doctor returns the transport's findings, and the degraded parts of the bus's groups.
func (a Endpoint) doctor(w http.ResponseWriter, r *http.Request, inspector driver.Inspector) error {
	findings := inspector.Diagnose(r.Context())
	for _, h := range a.Bus.Health() {
		findings = append(findings, diagnoseHealth(h, a.urlOf(r)))
	}
	return answer(w, each(findings, DescribeFinding)...)
}

func (a Endpoint) tail(w http.ResponseWriter, r *http.Request, inspector driver.Inspector) error {
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
	}) // ends with the client's connection or the service
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
	if err == nil {
		driver.ClearFault(m.Message.Metadata)
		err = CheckMessage(a.Bus, m.Message)
	}
	if err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
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

// readEnd returns an error if the body has more data.
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

// readRecords decodes {"records":[…]}.
func readRecords(r *http.Request) (msgs []driver.PoisonedMessage, err error) {
	err = readList(r, "records", func(record Record) error {
		m, err := record.Message()
		if err == nil && m.Topic() == "" {
			err = fmt.Errorf("record %d has no topic; export writes it", len(msgs)+1)
		}
		if err != nil {
			return &statusError{http.StatusBadRequest, err.Error()}
		}
		msgs = append(msgs, m)
		return nil
	})
	return msgs, err
}

// readIDs decodes a [bulkBody].
func readIDs(r *http.Request) (ids []string, err error) {
	err = readList(r, "ids", func(id string) error {
		if len(ids) == maxIDs {
			return &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has over %d ids; send less at once", maxIDs)}
		}
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

// readList decodes {"name":[…]} one item at a time, because the decoder has the whole of a value in memory.
func readList[T any](r *http.Request, name string, add func(T) error) error {
	decoder := json.NewDecoder(r.Body)
	for _, want := range []json.Token{json.Delim('{'), name, json.Delim('[')} {
		token, err := decoder.Token()
		if err != nil {
			return unreadable(err)
		}
		if token != want {
			return &statusError{http.StatusBadRequest, fmt.Sprintf(`body: write {"%s":[…]}`, name)}
		}
	}
	for decoder.More() {
		var item T
		if err := decoder.Decode(&item); err != nil {
			return unreadable(err)
		}
		if err := add(item); err != nil {
			return err
		}
	}
	for range 2 { // ] and }
		token, err := decoder.Token()
		if err != nil {
			return unreadable(err)
		}
		if _, ok := token.(json.Delim); !ok {
			return &statusError{http.StatusBadRequest, fmt.Sprintf(`body: write {"%s":[…]} with nothing beside the %[1]s`, name)}
		}
	}
	return readEnd(decoder)
}

// onQueue returns a handler that needs the poison queue of an existing group.
func (a Endpoint) onQueue(do func(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error) endpointHandler {
	return func(w http.ResponseWriter, r *http.Request) error {
		group, transport := r.PathValue("group"), WithOutbox(a.Bus.Transport(), a.Bus.Outbox())
		if inspector, ok := transport.(driver.Inspector); ok {
			if _, err := FindGroups(r.Context(), inspector, group); err != nil {
				return err
			}
		}
		return do(w, r, transport.PoisonQueue(group))
	}
}

func (a Endpoint) list(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error {
	group := r.PathValue("group")
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

func (a Endpoint) get(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error {
	m, err := queue.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, Full(r.PathValue("group"), m))
}

// bulkBody has the ids of messages to move.
type bulkBody struct {
	IDs []string `json:"ids"`
}

// doneBody has the number of moved messages, and an error for one that was not found.
type doneBody struct {
	Done    int    `json:"done"`
	Missing string `json:"missing,omitempty"`
}

// move returns the handler that replays or drops messages.
func (a Endpoint) move(do func(driver.PoisonQueue, context.Context, ...string) (int, error)) endpointHandler {
	return a.onQueue(func(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error {
		ids, err := readIDs(r)
		if err != nil {
			return err
		}
		n, err := do(queue, r.Context(), ids...)
		return answerDone(w, n, err)
	})
}

// answerDone writes the number of moved messages. That some are missing is no error.
func answerDone(w http.ResponseWriter, n int, err error) error {
	done := doneBody{Done: n}
	if errors.Is(err, driver.ErrNotFound) {
		done.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return answer(w, done)
}

// undoesBody has the result of [DryRunner].Undoes.
type undoesBody struct {
	Undoes bool `json:"undoes"`
}

func (a Endpoint) undoes(w http.ResponseWriter, r *http.Request) error {
	undoes, err := a.DryRunner.Undoes(r.Context(), r.PathValue("group"))
	if err != nil {
		return err
	}
	return answer(w, undoesBody{undoes})
}

// trying returns a handler that needs the DryRunner.
func (a Endpoint) trying(do endpointHandler) endpointHandler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if a.DryRunner == nil {
			return &statusError{http.StatusNotImplemented, "this endpoint does not offer a dry run; the service's own binary may"}
		}
		return do(w, r)
	}
}

func (a Endpoint) dryRun(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error {
	ids, err := readIDs(r)
	if err != nil {
		return err
	}
	wanted, msgs := make(map[string]bool, len(ids)), []driver.PoisonedMessage{}
	for _, id := range ids {
		wanted[id] = true
	}
	err = Each(r.Context(), queue, "", func(m driver.PoisonedMessage) error {
		if wanted[m.ID] {
			msgs = append(msgs, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	results, err := a.DryRunner.DryRun(r.Context(), r.PathValue("group"), msgs)
	if err != nil {
		return err
	}
	return answer(w, results...)
}

// put writes messages; one with an id replaces the message of that id.
func (a Endpoint) put(w http.ResponseWriter, r *http.Request, queue driver.PoisonQueue) error {
	msgs, err := readRecords(r)
	if err != nil {
		return err
	}
	return answerDone(w, 0, queue.Put(r.Context(), msgs...))
}
