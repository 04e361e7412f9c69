package fxmodule

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"reflect"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// Outbox makes the bus use an outbox over the application's connection pool, so that bus.InTx publishes in its transactions. The
// constructor returns any type that implements driver.Outbox, with an error if needed. fx provides its dependencies:
//
//	fxmodule.Outbox(func(db *pgxpool.Pool, c fxmodule.Config) (*outbox.Outbox, error) {
//		return outbox.NewPgx(context.Background(), db, outbox.Config{Service: c.Service})
//	})
//
// LEAT_OUTBOX_URL does the same without code. The outbox then has its own connections.
func Outbox(constructor any) fx.Option {
	return provide[driver.Outbox]("Outbox", constructor, "")
}

// outbox returns the application's outbox, else the one of the URL, else nil.
func (p BusParams) outbox(ctx context.Context) (driver.Outbox, error) {
	if p.Outbox != nil || p.Config.OutboxURL == "" {
		return p.Outbox, nil
	}
	u, err := databaseURL("OUTBOX_URL", p.Config.OutboxURL)
	if err != nil {
		return nil, err
	}
	o, err := outbox.Open(ctx, u, outbox.Config{Service: p.Config.Service})
	if err != nil {
		return nil, fmt.Errorf("fxmodule: %sOUTBOX_URL: %w", Prefix, err)
	}
	return o, nil
}

var errDatabaseURL = errors.New("it is no URL of a database, like postgres://user@host/database")

// databaseURL parses a URL. Its errors do not contain the URL, which may have a password.
func databaseURL(name, raw string) (*url.URL, error) {
	if raw == "" {
		return nil, fmt.Errorf("fxmodule: %s%s is not set; it names the service's own database, like postgres://user@host/database", Prefix, name)
	}
	u, err := urlopt.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("fxmodule: %s%s: %w: %w", Prefix, name, errDatabaseURL, err)
	case u.Scheme == "":
		return nil, fmt.Errorf("fxmodule: %s%s: %w", Prefix, name, errDatabaseURL)
	}
	return u, nil
}

// Inbox provides the inbox of [HandleTx], over the application's connection pool. The constructor returns a type that implements
// handlers.Inbox[TX], with an error if needed:
//
//	fxmodule.Inbox[pgx.Tx](func(db *pgxpool.Pool) (*inbox.Inbox[pgx.Tx], error) {
//		return inbox.NewPgx(context.Background(), db, inbox.Config{})
//	})
//
// If the inbox has a method Close, it is called after the bus has drained.
func Inbox[TX any](constructor any) fx.Option {
	return provide[handlers.Inbox[TX]]("Inbox", constructor, "", fx.OnStop(func(i handlers.Inbox[TX]) error {
		if closer, ok := i.(io.Closer); ok {
			return closer.Close()
		}
		return nil
	}))
}

// InboxFromURL provides an inbox with its own connections to the database of LEAT_INBOX_URL. Its handlers get a *sql.Tx.
func InboxFromURL() fx.Option { return Inbox[*stdsql.Tx](openInbox) }

// inboxURLParams has the dependencies of [InboxFromURL].
type inboxURLParams struct {
	fx.In

	Config Config
	Logger *slog.Logger `optional:"true"`
}

func openInbox(p inboxURLParams) (*inbox.Inbox[*stdsql.Tx], error) {
	u, err := databaseURL("INBOX_URL", p.Config.InboxURL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := p.Config.opening(p.Logger)
	defer cancel()
	i, err := inbox.Open(ctx, u, inbox.Config{})
	if err != nil {
		return nil, fmt.Errorf("fxmodule: %sINBOX_URL: %w", Prefix, err)
	}
	return i, nil
}

// HandleTx registers a function as a handler that runs in a transaction of the inbox. The transaction also records the message,
// so its effects happen once. See handlers.Tx.
func HandleTx[TX any, T bus.Event](name string, fn func(context.Context, TX, T) error, opts ...handlers.Option) fx.Option {
	return HandleFunc(func(p inboxParams[TX]) (bus.Handler, error) {
		if p.Inbox == nil {
			return bus.Handler{}, fmt.Errorf("fxmodule: handler %q: there is no inbox that makes a %s; give one with fxmodule.Inbox, "+
				"or with fxmodule.InboxFromURL, which makes a *sql.Tx of the database in %sINBOX_URL", name, reflect.TypeFor[TX](), Prefix)
		}
		return made(func() bus.Handler { return handlers.Tx(name, p.Inbox, fn, opts...) })
	})
}

// inboxParams has the dependencies of a handler in a transaction.
type inboxParams[TX any] struct {
	fx.In

	Inbox handlers.Inbox[TX] `optional:"true"` // optional, so that leat's own error names the fix
}
