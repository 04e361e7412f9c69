package transports

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports/amqp"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql"
)

// An Opener opens a transport for a URL. It blocks until the message system has answered or ctx is done. Its errors must not
// contain the URL's password.
type Opener func(ctx context.Context, u *url.URL) (driver.Transport, error)

// A Mux finds the opener for a URL by its scheme. It must not be changed while it is in use.
type Mux struct{ openers map[string]Opener }

// Default returns a new mux with all transports of this module.
func Default() *Mux {
	m := &Mux{openers: make(map[string]Opener)}
	m.Register(memory.Open, memory.Scheme)
	m.Register(amqp.Open, amqp.Scheme, amqp.SchemeTLS)
	m.Register(sql.Open, sql.Schemes()...)
	return m
}

// Register adds or replaces the opener of some schemes.
func (m *Mux) Register(open Opener, schemes ...string) {
	for _, scheme := range schemes {
		m.openers[scheme] = open
	}
}

// Schemes returns the registered schemes, sorted.
func (m *Mux) Schemes() []string { return slices.Sorted(maps.Keys(m.openers)) }

// openNotice is how long a message system may take to answer before the log says so.
const openNotice = 2 * time.Second

// Open opens the transport for a URL. It blocks, and returns errors, as [Opener] does. It returns an error that lists the
// registered schemes if the URL's scheme is not one of them.
func (m *Mux) Open(ctx context.Context, rawURL string) (driver.Transport, error) {
	u, err := parse(strings.TrimSpace(rawURL))
	if err != nil {
		return nil, err
	}
	open, ok := m.openers[u.Scheme]
	if !ok {
		return nil, m.unknown(u.Scheme)
	}
	ctx, last := driver.WithLastError(ctx)
	notice := time.AfterFunc(openNotice, func() {
		why := last()
		if why == nil {
			why = errSilent
		}
		driver.LoggerFrom(ctx).Warn("leat: the message system does not answer yet; waiting for it", "url", urlopt.Show(u),
			"error", driver.OneLine(why.Error(), driver.MaxErrorBytes))
	})
	defer notice.Stop()
	t, err := open(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("transports: open %s: %w", urlopt.Show(u), err)
	}
	return t, nil
}

var errSilent = errors.New("no try has failed so far")

// parse parses a URL. Its errors do not contain the URL, which may have a password.
func parse(rawURL string) (*url.URL, error) {
	u, err := urlopt.Parse(rawURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("transports: %w", err)
	case u.Scheme == "":
		return nil, errors.New("transports: the URL has no scheme; a URL begins like memory:// or amqp://")
	case isPort(u.Opaque): // localhost:5672
		return nil, fmt.Errorf("transports: the URL has no scheme before its host and port; write %s:// before them", schemeOfPort(u.Opaque))
	}
	return u, nil
}

func isPort(opaque string) bool {
	port, _, _ := strings.Cut(opaque, "/")
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}

// schemeOfPort returns the scheme of the message system that usually listens on a port.
func schemeOfPort(opaque string) string {
	port, _, _ := strings.Cut(opaque, "/")
	return cmp.Or(map[string]string{"5432": "postgres", "3306": "mysql", "5671": "amqps"}[port], "amqp")
}

// otherName returns the scheme that another common name stands for, "" if there is none.
func otherName(scheme string) string {
	return map[string]string{
		"rabbit": "amqp", "rabbitmq": "amqp", "pg": "postgres", "pgx": "postgres", "psql": "postgres",
		"sqlite3": "sqlite", "file": "sqlite", "mem": "memory", "inmemory": "memory", "gochannel": "memory",
	}[scheme]
}

func (m *Mux) unknown(scheme string) error {
	hint := ""
	if near := cmp.Or(otherName(scheme), urlopt.Nearest(scheme, m.Schemes())); near != "" {
		hint = fmt.Sprintf(" Did you mean %s://?", near)
	}
	return fmt.Errorf("transports: no transport for %q; there are %s.%s", scheme+"://", strings.Join(m.Schemes(), ", "), hint)
}

// Open opens a transport with the [Default] mux.
func Open(ctx context.Context, rawURL string) (driver.Transport, error) {
	return Default().Open(ctx, rawURL)
}
