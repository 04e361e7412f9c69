package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/cli"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/amqp"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql"
)

// target has the flags for the message system.
type target struct {
	URL        string `name:"url" env:"LEAT_URL" placeholder:"URL" help:"The URL of the message system, as for a service; unix:///path or https://host:port is a service's admin endpoint."`
	AdminToken string `name:"admin-token" env:"LEAT_ADMIN_TOKEN" placeholder:"TOKEN" help:"The token of the admin endpoint. The variable is safer than the flag."`
}

var (
	errNoURL    = errors.New("no URL; give one by --url or LEAT_URL, like postgres://user:password@host/database")
	errNoScheme = errors.New("the URL has no scheme; write it like postgres://user:password@host/database, amqp://user:password@host/ or sqlite:file.db")
	errFragment = errors.New("the URL has a #, which ends it; write %23 for one in a password")
	errMemory   = errors.New("memory:// is inside the service's process; " +
		"start the service with LEAT_ADMIN=/run/shop/leat.sock, and give --url unix:///run/shop/leat.sock")
)

// parse reads the URL.
func (t *target) parse() (*url.URL, error) {
	if t.URL == "" {
		return nil, &cli.UsageError{Err: errNoURL}
	}
	u, err := urlopt.Parse(t.URL)
	switch {
	case err != nil && strings.Contains(t.URL, "://"):
		return nil, &cli.UsageError{Err: err}
	case err != nil || !strings.Contains(t.URL, "://") && u.Scheme != string(sql.SQLite):
		return nil, &cli.UsageError{Err: errNoScheme}
	case u.Fragment != "":
		return nil, &cli.UsageError{Err: errFragment}
	}
	return u, nil
}

// open opens the message system. It creates nothing; services and leat migrate do.
func (t *target) open(ctx context.Context, e *cli.Env) (bus.Transport, error) {
	u, err := t.parse()
	if err != nil {
		return nil, err
	}
	e.Where = urlopt.Show(u)
	switch {
	case u.Scheme == memory.Scheme:
		return nil, &cli.UsageError{Err: errMemory}
	case slices.Contains(sql.Schemes(), u.Scheme):
		q := u.Query()
		if !q.Has("migrate") {
			q.Set("migrate", string(sql.MigrateCheck))
		}
		u.RawQuery = q.Encode()
	}
	mux := transports.Default()
	mux.Register(t.dial, "unix", "http", "https")
	mux.Register(openAMQP, amqp.Scheme, amqp.SchemeTLS)
	if !slices.Contains(mux.Schemes(), u.Scheme) {
		_, err := mux.Open(ctx, u.Scheme+"://") // its error lists the schemes
		return nil, &cli.UsageError{Err: trimmed(err)}
	}
	transport, err := mux.Open(ctx, u.String())
	if cause := errors.Unwrap(err); cause != nil {
		err = cause // the command adds the URL without its options
	}
	return transport, err
}

// openAMQP opens RabbitMQ for an operator.
func openAMQP(ctx context.Context, u *url.URL) (bus.Transport, error) {
	cfg, err := amqp.ConfigFromURL(u)
	if err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	cfg.Operator = true
	transport, err := amqp.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return transport, nil
}

// dial connects to the admin endpoint of a service.
func (t *target) dial(ctx context.Context, u *url.URL) (bus.Transport, error) {
	return admin.Dial(ctx, u, t.AdminToken)
}

// trimmed returns an error without the prefix of package transports.
func trimmed(err error) error {
	return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "transports: "))
}
