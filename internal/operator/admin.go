package operator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Admin is the endpoint by which operators reach a service's transport from another process, such as one in
// memory. It speaks JSON over HTTP:
//
//	GET  /health                          state of the bus's groups; 503 where one is degraded
//	GET  /groups, /topics, /doctor        as leat groups, topics and doctor
//	GET  /tail?pattern=order.>            records, a line each, until the client goes
//	POST /publish                         a record
//	GET  /poison/{group}?after=ID&limit=N full records, a line each
//	GET  /poison/{group}/{id}             a full record
//	POST /poison/{group}/replay, …/rm     {"ids":[…]} → {"done":N,"missing":"…"}
//	POST /poison/{group}/put              {"records":[…]} → {"missing":"…"}
//	GET  /poison/{group}/what-if          {"undoes":true} where a rehearsal undoes all that the handler does
//	POST /poison/{group}/what-if          {"ids":[…]} → how each would go, a line each
//
// The service's outbox is one of the groups. An error is {"error":"…"} with a status that says whose it is. Records are in the wire form of [Record].
type Admin struct {
	// Addr is where to listen, like 127.0.0.1:7070. Without a token it must be a loopback address.
	Addr string
	// Token is what clients must bring as "Authorization: Bearer …"; "" asks for none.
	Token string
	Bus   *bus.Bus
	// Rehearser tries dead messages for what-if; nil where that is not offered.
	Rehearser *Rehearser
	Logger    *slog.Logger
}

// Validate says why the endpoint may not be opened.
func (a Admin) Validate() error {
	host, port, err := net.SplitHostPort(a.Addr)
	if err != nil || port == "" {
		return fmt.Errorf("admin address %q: write host:port, like 127.0.0.1:7070", a.Addr)
	}
	if a.Token == "" && !isLoopback(host) {
		return fmt.Errorf("admin address %q can be reached from other machines, and there is no token; "+
			"listen on 127.0.0.1, or set a token", a.Addr)
	}
	return nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// AdminServer is an open endpoint.
type AdminServer struct {
	server *http.Server
	addr   net.Addr
	cancel context.CancelFunc
	ended  chan error
}

// Start listens and serves until Stop.
func (a Admin) Start(ctx context.Context) (*AdminServer, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, fmt.Errorf("admin endpoint: %w", err)
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &AdminServer{
		server: &http.Server{
			Handler:           a.Handler(),
			ReadHeaderTimeout: 10 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return serving },
			ErrorLog:          slog.NewLogLogger(a.Logger.Handler(), slog.LevelWarn),
		},
		addr:   listener.Addr(),
		cancel: cancel,
		ended:  make(chan error, 1),
	}
	go func() { s.ended <- s.server.Serve(listener) }()
	a.Logger.Info("leat: admin endpoint", "url", "http://"+s.addr.String())
	return s, nil
}

// URL is where the endpoint is.
func (s *AdminServer) URL() string { return "http://" + s.addr.String() }

// Stop ends requests and closes the endpoint.
func (s *AdminServer) Stop(ctx context.Context) error {
	s.cancel()
	err := s.server.Shutdown(ctx)
	if served := <-s.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Handler is the endpoint without its address, for a server of one's own. It lets in whoever brings the
// token; without a token, whoever says that he talks to a loopback address, which a page in a browser that
// was led here by a name of its own does not.
func (a Admin) Handler() http.Handler {
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
		"POST /poison/{group}/what-if": a.rehearse,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := do(w, r); err != nil {
				refuse(w, err)
			}
		})
	}
	return a.guard(mux)
}

// maxBody bounds what a client may send at once, in bytes.
const maxBody = 1 << 30

func (a Admin) guard(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + a.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		have := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case a.Token != "" && subtle.ConstantTimeCompare(want[:], have[:]) != 1:
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, &statusError{http.StatusUnauthorized, "the token is missing or wrong; give the service's in LEAT_ADMIN_TOKEN"})
		case a.Token == "" && !isLoopback(strings.Trim(host, "[]")):
			refuse(w, &statusError{http.StatusForbidden, "call it by its loopback address"})
		case r.Method == http.MethodPost && contentType != "application/json":
			refuse(w, &statusError{http.StatusUnsupportedMediaType, "post application/json"})
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			next.ServeHTTP(w, r)
		}
	})
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
	if _, ok := errors.AsType[*UnknownGroupError](err); ok || errors.Is(err, bus.ErrNotFound) {
		status = http.StatusNotFound
	}
	if errors.Is(err, bus.ErrUnroutable) {
		status = http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/json")
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

func (a Admin) inspector() (bus.Inspector, error) {
	inspector, ok := WithOutbox(a.Bus.Transport(), a.Bus.Outbox()).(bus.Inspector)
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

func (a Admin) health(w http.ResponseWriter, _ *http.Request) error {
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

func (a Admin) groups(w http.ResponseWriter, r *http.Request) error {
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

func (a Admin) topics(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	all, err := inspector.Topics(r.Context())
	if err != nil {
		return err
	}
	return answer(w, each(all, func(t bus.TopicInfo) Topic { return Topic(t) })...)
}

// doctor also tells what the bus knows of its groups.
func (a Admin) doctor(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	findings := inspector.Diagnose(r.Context())
	for _, h := range a.Bus.Health() {
		f := bus.Finding{Check: "health of " + h.Group, Text: string(h.State)}
		for _, part := range slices.Sorted(maps.Keys(h.Degraded)) {
			f.Err = errors.Join(f.Err, fmt.Errorf("%s: %s", part, h.Degraded[part]))
			f.Cure = "see the service's log, and what it depends on"
		}
		findings = append(findings, f)
	}
	return answer(w, each(findings, DescribeFinding)...)
}

func (a Admin) tail(w http.ResponseWriter, r *http.Request) error {
	inspector, err := a.inspector()
	if err != nil {
		return err
	}
	pattern := r.URL.Query().Get("pattern")
	if err := bus.ValidatePattern(pattern); err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
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

func (a Admin) publish(w http.ResponseWriter, r *http.Request) error {
	var record Record
	if err := read(r, &record); err != nil {
		return err
	}
	m, err := record.Message()
	if err == nil {
		err = bus.ValidateTopic(record.Topic)
	}
	if err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	bus.ClearFault(m.Message.Metadata)
	if err := a.Bus.Transport().Publish(r.Context(), record.Topic, m.Message); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

// read takes in a request's body.
func read(r *http.Request, body any) error {
	if err := json.NewDecoder(r.Body).Decode(body); err != nil {
		return &statusError{http.StatusBadRequest, "body: " + err.Error()}
	}
	return nil
}

// queue is the poison queue of a group that is there.
func (a Admin) queue(r *http.Request) (string, bus.PoisonQueue, error) {
	group, transport := r.PathValue("group"), WithOutbox(a.Bus.Transport(), a.Bus.Outbox())
	if inspector, ok := transport.(bus.Inspector); ok {
		if _, err := FindGroups(r.Context(), inspector, group); err != nil {
			return group, nil, err
		}
	}
	return group, transport.PoisonQueue(group), nil
}

func (a Admin) list(w http.ResponseWriter, r *http.Request) error {
	group, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit < 1 || limit > 10*pageSize {
		limit = pageSize
	}
	list, err := queue.List(r.Context(), r.URL.Query().Get("after"), limit)
	if err != nil {
		return err
	}
	records := make([]Record, len(list))
	for i, m := range list {
		records[i] = Full(group, m)
	}
	return answer(w, records...)
}

func (a Admin) get(w http.ResponseWriter, r *http.Request) error {
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

func (a Admin) replay(w http.ResponseWriter, r *http.Request) error {
	return a.move(w, r, bus.PoisonQueue.Replay)
}

func (a Admin) remove(w http.ResponseWriter, r *http.Request) error {
	return a.move(w, r, bus.PoisonQueue.Drop)
}

func (a Admin) move(w http.ResponseWriter, r *http.Request, do func(bus.PoisonQueue, context.Context, ...string) (int, error)) error {
	var body bulkBody
	if err := read(r, &body); err != nil {
		return err
	}
	_, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	n, err := do(queue, r.Context(), body.IDs...)
	done := doneBody{Done: n}
	if errors.Is(err, bus.ErrNotFound) {
		done.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return answer(w, done)
}

// undoesBody is whether a rehearsal leaves nothing behind.
type undoesBody struct {
	Undoes bool `json:"undoes"`
}

func (a Admin) undoes(w http.ResponseWriter, r *http.Request) error {
	if a.Rehearser == nil {
		return errNoRehearser()
	}
	undoes, err := a.Rehearser.Undoes(r.Context(), r.PathValue("group"))
	if err != nil {
		return err
	}
	return answer(w, undoesBody{undoes})
}

func errNoRehearser() error {
	return &statusError{http.StatusNotImplemented, "this endpoint does not offer what-if; the service's own binary may"}
}

func (a Admin) rehearse(w http.ResponseWriter, r *http.Request) error {
	if a.Rehearser == nil {
		return errNoRehearser()
	}
	var body bulkBody
	if err := read(r, &body); err != nil {
		return err
	}
	group, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	wanted, msgs := make(map[string]bool, len(body.IDs)), []bus.PoisonedMessage{}
	for _, id := range body.IDs {
		wanted[id] = true
	}
	err = Each(r.Context(), queue, Filter{}, func(m bus.PoisonedMessage) error {
		if wanted[m.ID] {
			msgs = append(msgs, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	results, err := a.Rehearser.Rehearse(r.Context(), group, msgs)
	if err != nil {
		return err
	}
	return answer(w, results...)
}

// putBody is messages to write; one with an id takes its place.
type putBody struct {
	Records []Record `json:"records"`
}

func (a Admin) put(w http.ResponseWriter, r *http.Request) error {
	var body putBody
	if err := read(r, &body); err != nil {
		return err
	}
	_, queue, err := a.queue(r)
	if err != nil {
		return err
	}
	msgs := make([]bus.PoisonedMessage, len(body.Records))
	for i, record := range body.Records {
		if msgs[i], err = record.Message(); err != nil {
			return &statusError{http.StatusBadRequest, err.Error()}
		}
	}
	var done doneBody
	if err = queue.Put(r.Context(), msgs...); errors.Is(err, bus.ErrNotFound) {
		done.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return answer(w, done)
}
