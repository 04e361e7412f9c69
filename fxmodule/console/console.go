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
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"html/template"
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
	c := &console{Config: cfg, transport: cfg.Transport, protection: http.NewCrossOriginProtection(), streams: make(chan struct{}, maxStreams)}
	if cfg.Bus != nil {
		c.transport = admin.WithOutbox(cfg.Bus.Transport(), cfg.Bus.Outbox())
		c.pauser = localPauser{cfg.Bus}
		c.dryRunner, c.describer = admin.NewLocalDryRunner(cfg.Bus, cfg.Stack), admin.NewLocalDescriber(cfg.Bus, cfg.Bus.Transport(), cfg.Stack)
	}
	if c.transport == nil {
		panic("console: the Config has neither a Bus nor a Transport")
	}
	if err := CheckTraceURL(c.TraceURL); err != nil {
		panic(err)
	}
	if c.Authorize == nil {
		c.Authorize = fromThisMachine
	}
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if remote, ok := c.transport.(admin.DryRunner); ok {
		c.dryRunner = remote
	}
	c.lister, _ = c.transport.(driver.ConsumerLister)
	if cfg.Bus != nil {
		c.lister, _ = cfg.Bus.Transport().(driver.ConsumerLister)
	}
	if remote, ok := c.transport.(pauser); ok {
		c.pauser = remote
	}
	if remote, ok := c.transport.(admin.Describer); ok {
		c.describer = remote
	}
	c.templates = parseTemplates()
	c.sampler = newSampler(c.sample)
	c.routes = c.newRoutes()
	return c
}

// console serves the pages. It may be used concurrently.
type console struct {
	Config
	transport  driver.Transport
	dryRunner  admin.DryRunner       // nil if nobody here has the handlers
	describer  admin.Describer       // nil if nobody here knows the wiring
	pauser     pauser                // nil if no process can be paused from here
	lister     driver.ConsumerLister // nil if the message system lists no consumers
	protection *http.CrossOriginProtection
	templates  map[string]*template.Template
	sampler    *sampler
	routes     map[string]route
	streams    chan struct{} // a slot for each stream
}

// route is what a path serves. All paths have one segment, so that every link is relative to the same place.
type route struct {
	get, post func(http.ResponseWriter, *http.Request) error
}

func (c *console) newRoutes() map[string]route {
	return map[string]route{
		"":            {get: c.overview("overview", "Overview")},
		"group":       {get: c.group},
		"find":        {get: c.find},
		"message":     {get: c.message},
		"payload":     {get: c.payload},
		"tail":        {get: c.tail},
		"tail-stream": {get: c.tailStream},
		"live":        {get: c.live},
		"confirm":     {get: c.confirm},
		"pause":       {get: c.askPause, post: c.setPaused},
		"act":         {post: c.act},
		"remove":      {get: c.askRemove, post: c.remove},
		"edit":        {get: c.edit, post: c.change},
		"publish":     {get: c.publishForm, post: c.publish},
		"outbox":      {get: c.overview("outbox", "Outbox")},
		"doctor":      {get: c.doctor},
		"wiring":      {get: c.wiring},
		"wiring.mmd":  {get: c.graph},
		"wiring.json": {get: c.wiringJSON},
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
	if !c.Authorize(r) {
		return &pageError{http.StatusForbidden, "This console serves only requests from its own machine."}
	}
	if err := c.checkSite(r); err != nil {
		return err
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	if r.URL.Path == "" { // the prefix without its slash, from which relative links would lead astray
		w.Header().Set("Location", "./"+path.Base(strings.SplitN(r.RequestURI, "?", 2)[0])+"/")
		w.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	found, ok := c.routes[name]
	if !ok {
		return &pageError{http.StatusNotFound, "There is no such page."}
	}
	do := found.get
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		if !c.Actions {
			return &pageError{http.StatusForbidden, "This console is read-only."}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		do = found.post
	default:
		do = nil
	}
	if do == nil {
		return &pageError{http.StatusMethodNotAllowed, "This page does not take " + r.Method + "."}
	}
	if name != "live" && name != "tail-stream" {
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
	_ = c.render(w, r, status, "error", "", http.StatusText(status), text)
}

//go:embed static templates
var files embed.FS

// asset serves a file that is part of the program.
func asset(name, contentType string) func(http.ResponseWriter, *http.Request) error {
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

// view is what the layout of every page needs.
type view struct {
	Title   string
	Nav     string // the current entry of the navigation
	Actions bool
	Body    any
}

// render writes a page. Nothing is written before the page is complete.
func (c *console) render(w http.ResponseWriter, r *http.Request, status int, name, nav, title string, body any) error {
	var page bytes.Buffer
	if err := c.templates[name].ExecuteTemplate(&page, "layout", view{title, nav, c.Actions, body}); err != nil {
		if name == "error" {
			http.Error(w, "The page could not be made.", http.StatusInternalServerError)
			return nil
		}
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = page.WriteTo(w)
	}
	return nil
}

// inspector returns what shows the groups.
func (c *console) inspector() (driver.Inspector, error) {
	inspector, ok := c.transport.(driver.Inspector)
	if !ok {
		return nil, &pageError{http.StatusNotImplemented, "This transport shows operators nothing but poison queues."}
	}
	return inspector, nil
}
