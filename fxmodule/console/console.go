// Package console serves a web console of a bus: its groups with what waits in them, their poison queues, one message's
// story, a live tail, the outbox and the wiring. With actions allowed it also replays, drops, edits and tries poisoned
// messages, pauses groups and publishes test events.
//
//	http.Handle("/leat/", http.StripPrefix("/leat", console.New(console.Config{Bus: b, Stack: stack})))
//
// In an fx service, fxmodule.Console(console.ReadOnly) serves it at the admin endpoint, under /console/. The command leat
// console, which a service's own binary with package fxmodule/cli has too, serves it for a message system that other processes use.
//
// Pages are made on the server and work without JavaScript, but for the live parts. Nothing is loaded from elsewhere.
// The package stands by itself so that a service without a console does not link it.
package console

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
)

// Config configures a console. Bus or Transport must be set.
type Config struct {
	// Bus is the bus of this process. Its transport, its outbox, its handlers and their state are shown.
	Bus *bus.Bus
	// Stack is the stack of the bus's handlers. The wiring shows it, and dry runs use it.
	Stack middleware.Stack
	// Transport is what to show where there is no bus. The caller closes it.
	Transport driver.Transport
	// Actions allows to replay, drop, edit and try poisoned messages, to pause groups, to delete groups that nobody consumes,
	// and to publish. Without it the console is read-only.
	Actions bool
	// TraceURL is the address of a trace in your trace viewer, such as "https://jaeger.example/trace/{trace_id}"; messages
	// link to it. Empty means no link.
	TraceURL string
	// Authorize reports whether a request may be served; it may be called concurrently. nil means that only requests
	// from this machine to localhost or a loopback address are served.
	Authorize func(*http.Request) bool
	// Logger gets a line for each action; nil means slog.Default().
	Logger *slog.Logger
}

// ReadOnly returns a console of a bus that changes nothing, for a caller that authorizes requests, as
// fxmodule.Console does.
func ReadOnly(b *bus.Bus, stack middleware.Stack) http.Handler {
	return Config{}.Handler(b, stack)
}

// WithActions returns a console of a bus with all actions, for a caller that authorizes requests, as fxmodule.Console does.
func WithActions(b *bus.Bus, stack middleware.Stack) http.Handler {
	return Config{Actions: true}.Handler(b, stack)
}

// Handler returns a console of a bus as cfg says, for a caller that authorizes requests, as fxmodule.Console does.
// Authorize is not used.
func (cfg Config) Handler(b *bus.Bus, stack middleware.Stack) http.Handler {
	cfg.Bus, cfg.Stack, cfg.Authorize = b, stack, anyone
	return New(cfg)
}

func anyone(*http.Request) bool { return true }

// New returns a console. All its links are relative: it works under any prefix that ends with a slash, with
// [http.StripPrefix]. Its live parts end with their request's context. It panics if neither a bus nor a transport is
// configured, or if TraceURL is no HTTP URL with {trace_id}.
func New(cfg Config) http.Handler {
	if cfg.Bus == nil && cfg.Transport == nil {
		panic("console: the Config has neither a Bus nor a Transport")
	}
	if err := CheckTraceURL(cfg.TraceURL); err != nil {
		panic(err)
	}
	if cfg.Authorize == nil {
		cfg.Authorize = fromThisMachine
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	c := &console{authorize: cfg.Authorize, actions: cfg.Actions, protection: http.NewCrossOriginProtection(), templates: parseTemplates()}
	c.routes = c.newRoutes(cfg)
	return c
}

// console serves the pages: it decides which requests are served, and writes the page that the part for a path returns. It
// may be used concurrently, as may its parts.
type console struct {
	authorize  func(*http.Request) bool
	actions    bool
	protection *http.CrossOriginProtection
	templates  templates
	routes     map[string]route
}

// handler serves a request, or returns why it does not.
type handler func(http.ResponseWriter, *http.Request) error

// route is what a path serves. All paths have one segment, so that every link is relative to the same place.
type route struct {
	get, post handler
	acts      bool // it is a part of an action, and not served by a console that is read-only
	streams   bool // it has no timeout
}

// newRoutes makes the parts of the console, each with what it needs.
func (c *console) newRoutes(cfg Config) map[string]route {
	shown := newSystem(cfg)
	sampler := newSampler(shown.sample)
	log := actionLog{cfg.Logger, sampler}
	groups := groupPages{sampler, cfg.Actions && shown.setPaused != nil, cfg.Actions && shown.remover != nil}
	poisoned := poisonPages{shown, groups, cfg.TraceURL}
	streams := streams{shown, groups, c.templates, make(chan struct{}, maxStreams)}

	actions := actions{shown.transport, shown.dryRunner, log}
	pausing := pausing{shown, groups, log}
	removal := removal{shown.remover, groups, log}
	publishing := publishing{shown.transport, cfg.Bus, sampler, log}

	return map[string]route{
		"":            {get: c.page(groups.overview("overview", "Overview"))},
		"group":       {get: c.page(poisoned.group)},
		"find":        {get: c.page(poisoned.find)},
		"message":     {get: c.page(poisoned.message)},
		"payload":     {get: poisoned.payload},
		"tail":        {get: c.page(streams.tail)},
		"tail-stream": {get: streams.tailStream, streams: true},
		"live":        {get: streams.live, streams: true},
		"confirm":     {get: c.page(actions.confirm), acts: true},
		"act":         {post: c.page(actions.act), acts: true},
		"edit":        {get: c.page(actions.edit), post: c.page(actions.change), acts: true},
		"pause":       {get: c.page(pausing.ask), post: c.page(pausing.set), acts: true},
		"remove":      {get: c.page(removal.ask), post: c.page(removal.remove), acts: true},
		"publish":     {get: c.page(publishing.form), post: c.page(publishing.publish), acts: true},
		"outbox":      {get: c.page(groups.overview("outbox", "Outbox"))},
		"doctor":      {get: c.page(shown.doctor)},
		"wiring":      {get: c.page(shown.wiring)},
		"wiring.mmd":  {get: groups.graph},
		"wiring.json": {get: shown.wiringJSON},
		"style.css":   {get: asset("style.css", "text/css; charset=utf-8")},
		"console.js":  {get: asset("console.js", "text/javascript; charset=utf-8")},
	}
}

// Limits of requests.
const (
	requestTimeout = 20 * time.Second // of everything but streams
	maxForm        = 4 << 20          // bytes of a posted form
)

// ServeHTTP serves a page.
func (c *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if err := c.serve(w, r); err != nil {
		c.fail(w, r, err)
	}
}

func (c *console) serve(w http.ResponseWriter, r *http.Request) error {
	if !c.authorize(r) {
		return &pageError{http.StatusForbidden, "This console serves only requests from its own machine."}
	}
	if err := c.checkSite(r); err != nil {
		return err
	}
	if r.URL.Path == "" { // the prefix without its slash, from which relative links would lead astray
		w.Header().Set("Location", "./"+path.Base(strings.SplitN(r.RequestURI, "?", 2)[0])+"/")
		w.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	found, ok := c.routes[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		return &pageError{http.StatusNotFound, "There is no such page."}
	}
	do := found.get
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		do = found.post
	default:
		do = nil
	}
	switch {
	case !c.actions && (r.Method == http.MethodPost || found.acts && do != nil):
		return errReadOnly
	case do == nil:
		return &pageError{http.StatusMethodNotAllowed, "This page does not take " + r.Method + "."}
	}
	if !found.streams {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	return do(w, r)
}

// checkSite refuses what pages of other sites send, but for plain links to a page: reading has effects, too, since
// RabbitMQ's poison queues are read by taking and putting back.
func (c *console) checkSite(r *http.Request) error {
	site := r.Header.Get("Sec-Fetch-Site")
	link := r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	if site != "" && site != "none" && site != "same-origin" && !link || c.protection.Check(r) != nil {
		return &pageError{http.StatusForbidden, "Requests from web pages of other sites are refused."}
	}
	return nil
}

// fromThisMachine reports whether a request comes from this machine and names it by a loopback address. A web page that
// reaches the console by a host name of its own is refused.
func fromThisMachine(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && admin.IsLocal(r.Host)
}

// pageError is an error with its HTTP status, in words for a page.
type pageError struct {
	status int
	text   string
}

func (e *pageError) Error() string { return e.text }

// Errors of several pages.
var (
	errReadOnly     = &pageError{http.StatusForbidden, "This console is read-only."}
	errNoAction     = &pageError{http.StatusBadRequest, "There is no such action."}
	errNotConfirmed = &pageError{http.StatusBadRequest, "The action was not confirmed."}
	errMessageGone  = &pageError{http.StatusNotFound, "The message is not in this poison queue any more. It may have been replayed or dropped."}
)

// fail shows an error.
func (c *console) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	_, unknown := errors.AsType[*admin.UnknownGroupError](err)
	if known, ok := errors.AsType[*pageError](err); ok {
		status = known.status
	} else if unknown || errors.Is(err, driver.ErrNotFound) {
		status = http.StatusNotFound
	}
	text := err.Error()
	var knows interface{ Fix() string }
	if errors.As(err, &knows) {
		text += "; " + knows.Fix()
	}
	_ = c.render(w, r, status, view{"error", "", http.StatusText(status), text})
}

//go:embed static templates
var files embed.FS

// attach announces a file to download.
func attach(w http.ResponseWriter, contentType, name string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
}

// asset serves a file that is part of the program.
func asset(name, contentType string) handler {
	text, err := fs.ReadFile(files, "static/"+name)
	if err != nil {
		panic(err) // it is embedded
	}
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "private, max-age=300")
		_, _ = w.Write(text)
		return nil
	}
}

// view is a page that is to be rendered.
type view struct {
	template string
	Nav      string // the current entry of the navigation
	Title    string
	Body     any
}

// page returns the handler that renders the page that makePage returns.
func (c *console) page(makePage func(*http.Request) (view, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v, err := makePage(r)
		if err != nil {
			return err
		}
		return c.render(w, r, http.StatusOK, v)
	}
}

// render writes a page. Nothing is written before the page is complete.
func (c *console) render(w http.ResponseWriter, r *http.Request, status int, v view) error {
	text, err := c.templates.execute(v.template, "layout", struct {
		view
		Actions bool
	}{v, c.actions})
	if err != nil {
		if v.template == "error" {
			http.Error(w, "The page could not be made.", http.StatusInternalServerError)
			return nil
		}
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text)
	}
	return nil
}
