package fxmodule

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/urlopt"
)

// Prefix is the prefix of every environment variable that leat reads.
const Prefix = "LEAT_"

// testPrefix is the prefix of variables that only leat's own tests read.
const testPrefix = Prefix + "TEST_"

// Config configures the module. The module reads it from the environment; fx.Replace replaces it, and fx.Decorate changes it. A
// duration of 0 means the default.
type Config struct {
	// URL is the URL of the transport: LEAT_URL.
	URL string `env:"URL" envDefault:"memory://"`
	// Service is the prefix of every group's name: LEAT_SERVICE. Empty means [driver.DefaultService].
	Service string `env:"SERVICE"`
	// OutboxURL is the service's own database (PostgreSQL, MySQL or SQLite), in whose transactions bus.InTx publishes:
	// LEAT_OUTBOX_URL. Empty means no outbox, unless [Outbox] provides one. A transport on the same database needs none.
	OutboxURL string `env:"OUTBOX_URL"`
	// InboxURL is the database of the handlers of [HandleTx]: LEAT_INBOX_URL. [InboxFromURL] opens it. A service that provides
	// its own [Inbox] needs none.
	InboxURL string `env:"INBOX_URL"`
	// RedisURL is the dedup store: LEAT_REDIS_URL. Empty means a store in memory.
	RedisURL string `env:"REDIS_URL"`
	// Dedup is open or closed, which says what to do if the dedup store can't be reached, or off: LEAT_DEDUP.
	Dedup bus.DedupMode `env:"DEDUP" envDefault:"open"`
	// DedupKeep is how long a handled message is remembered: LEAT_DEDUP_KEEP.
	DedupKeep time.Duration `env:"DEDUP_KEEP" envDefault:"24h"`
	// HandlerTimeout is the longest duration of one try: LEAT_HANDLER_TIMEOUT. A negative value means no limit.
	HandlerTimeout time.Duration `env:"HANDLER_TIMEOUT" envDefault:"30s"`
	// DrainTimeout is how long handlers may run after the application begins to stop: LEAT_DRAIN_TIMEOUT. It is never longer
	// than fx's stop timeout.
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"20s"`
	// PublishTimeout bounds a Publish whose context has no deadline: LEAT_PUBLISH_TIMEOUT. A negative value means no limit.
	// Handlers have their own timeout.
	PublishTimeout time.Duration `env:"PUBLISH_TIMEOUT" envDefault:"30s"`
	// MaxPayload is the largest payload to publish, in bytes: LEAT_MAX_PAYLOAD. 0 means 16 MiB.
	MaxPayload int `env:"MAX_PAYLOAD"`
	// ConnectTimeout bounds the opening of the transport: LEAT_CONNECT_TIMEOUT.
	ConnectTimeout time.Duration `env:"CONNECT_TIMEOUT" envDefault:"10s"`
	// Breaker turns the groups' circuit breakers on or off: LEAT_BREAKER.
	Breaker Switch `env:"BREAKER" envDefault:"on"`
	// BreakerProbe is the longest wait between two probes of a paused group: LEAT_BREAKER_PROBE.
	BreakerProbe time.Duration `env:"BREAKER_PROBE" envDefault:"30s"`
	// BreakerMaxPause is how long a message may have been failing and still be protected by a pause: LEAT_BREAKER_MAX_PAUSE.
	// After that its retry policy continues. A negative value means forever. See bus.BreakerPolicy.
	BreakerMaxPause time.Duration `env:"BREAKER_MAX_PAUSE" envDefault:"4h"`
	// HoldNewer is how long a message of a newer version than this process takes waits before it is poisoned:
	// LEAT_HOLD_NEWER. A negative value means that it does not wait.
	HoldNewer time.Duration `env:"HOLD_NEWER" envDefault:"1h"`
	// VersionField is the field of a foreign event's payload that may have its version: LEAT_VERSION_FIELD. Empty means
	// "version", and "-" means none. See bus.Config.
	VersionField string `env:"VERSION_FIELD"`
	// ShareGroups is on if a group may have a live consumer of another program that takes none of the same events, which the start
	// refuses otherwise: LEAT_SHARE_GROUPS. See bus.Config.
	ShareGroups Switch `env:"SHARE_GROUPS" envDefault:"off"`
	// Admin is the address of the admin endpoint: LEAT_ADMIN. It is the path of a unix socket, like
	// /run/shop/leat.sock, for leat --url unix:///run/shop/leat.sock, or host:port. Empty means no endpoint. Only the user of
	// the process can open the socket. TCP needs AdminToken, and an address that other machines reach needs AdminCert, too.
	Admin string `env:"ADMIN"`
	// AdminToken is what clients of the admin endpoint must send, of at least 16 characters: LEAT_ADMIN_TOKEN.
	AdminToken string `env:"ADMIN_TOKEN"`
	// AdminCert and AdminKey are PEM files of the admin endpoint's TLS certificate, with its chain, and of its key:
	// LEAT_ADMIN_CERT and LEAT_ADMIN_KEY. A new certificate is read at the next start.
	AdminCert string `env:"ADMIN_CERT"`
	AdminKey  string `env:"ADMIN_KEY"`
	// Retry is the retry policy of handlers that set none. It has no variable.
	Retry bus.RetryPolicy `env:"-"`
}

// LogValue implements slog.LogValuer. It leaves out the users and passwords of URLs, and the admin token.
func (c Config) LogValue() slog.Value {
	token := ""
	if c.AdminToken != "" {
		token = "set"
	}
	return slog.GroupValue(
		slog.String("url", shownURL(c.URL)), slog.String("service", c.Service), slog.String("redis_url", shownURL(c.RedisURL)),
		slog.String("outbox_url", shownURL(c.OutboxURL)), slog.String("inbox_url", shownURL(c.InboxURL)),
		slog.String("admin", c.Admin), slog.String("admin_token", token), slog.String("admin_cert", c.AdminCert))
}

// shownURL returns the parts of a URL that may be logged.
func shownURL(rawURL string) string {
	if rawURL == "" {
		return ""
	}
	u, err := urlopt.Parse(rawURL)
	if err != nil {
		return "not a URL"
	}
	return urlopt.Show(u)
}

// Switch is on or off. Its zero value is the default of its field.
type Switch string

// Positions of a [Switch].
const (
	On  Switch = "on"
	Off Switch = "off"
)

// breaker returns the circuit breaker's policy for handlers that set none.
func (c Config) breaker() bus.BreakerPolicy {
	if c.Breaker == Off {
		return bus.NoBreaker()
	}
	p := bus.BreakerPolicy{MaxProbe: c.BreakerProbe, MaxPause: c.BreakerMaxPause}
	if c.BreakerProbe > 0 {
		p.Probe = min(p.WithDefaults().Probe, c.BreakerProbe)
	}
	return p
}

// ConfigFromEnv reads the configuration from the environment. It returns an error if a value is invalid, or if there is an
// unknown variable with leat's prefix.
func ConfigFromEnv() (Config, error) { return configFrom(os.Environ()) }

func configFrom(environ []string) (Config, error) {
	cfg, err := env.ParseAsWithOptions[Config](env.Options{Prefix: Prefix, Environment: env.ToMap(environ)})
	if err != nil {
		return cfg, fmt.Errorf("fxmodule: configuration: %w", unreadable(err))
	}
	if err := errors.Join(unknown(environ)...); err != nil {
		return cfg, fmt.Errorf("fxmodule: configuration: %w", err)
	}
	return cfg, cfg.validate()
}

func (c Config) validate() error {
	if err := oneOf("DEDUP", c.Dedup, bus.DedupOpen, bus.DedupClosed, bus.DedupOff); err != nil {
		return err
	}
	for name, s := range map[string]Switch{"BREAKER": c.Breaker, "SHARE_GROUPS": c.ShareGroups} {
		if err := oneOf(name, s, On, Off); err != nil {
			return err
		}
	}
	for name, d := range map[string]time.Duration{"DEDUP_KEEP": c.DedupKeep, "BREAKER_PROBE": c.BreakerProbe, "DRAIN_TIMEOUT": c.DrainTimeout, "CONNECT_TIMEOUT": c.ConnectTimeout} {
		if d < 0 {
			return fmt.Errorf("fxmodule: configuration: %s%s is %s; it can't be negative, and 0 means the default", Prefix, name, d)
		}
	}
	return nil
}

// oneOf returns an error if a variable's value is neither empty nor one of some words.
func oneOf[T ~string](name string, value T, words ...T) error {
	if value == "" || slices.Contains(words, value) {
		return nil
	}
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = string(w)
	}
	hint := ""
	if near := urlopt.Nearest(string(value), all); near != "" {
		hint = fmt.Sprintf(" Did you mean %s?", near)
	}
	last := len(all) - 1
	return fmt.Errorf("fxmodule: configuration: %s%s is %q; it is %s or %s.%s", Prefix, name, value, strings.Join(all[:last], ", "), all[last], hint)
}

// unreadable returns an error that names the variables with invalid values.
func unreadable(err error) error {
	var all env.AggregateError
	if !errors.As(err, &all) {
		return err
	}
	var errs []error
	for _, one := range all.Errors {
		field, ok := errors.AsType[env.ParseError](one)
		if !ok {
			errs = append(errs, one)
			continue
		}
		name, _ := reflect.TypeFor[Config]().FieldByName(field.Name)
		errs = append(errs, fmt.Errorf("%s%s: %w; a duration is written as 500ms, 30s or 5m", Prefix, name.Tag.Get("env"), field.Err))
	}
	return errors.Join(errs...)
}

// unknown returns an error for unknown variables with leat's prefix.
func unknown(environ []string) (errs []error) {
	known := knownVariables()
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		suffix, ours := strings.CutPrefix(name, Prefix)
		if !ours || strings.HasPrefix(name, testPrefix) || slices.Contains(known, name) || kubernetes(suffix) {
			continue
		}
		hint := ""
		if near := urlopt.Nearest(suffix, withoutPrefix(known)); near != "" {
			hint = fmt.Sprintf(" Did you mean %s?", Prefix+near)
		}
		errs = append(errs, fmt.Errorf("unknown variable %s; known: %s.%s", name, strings.Join(known, ", "), hint))
	}
	return errs
}

// kubernetes reports whether Kubernetes sets the variable in every pod if there is a service named "leat".
func kubernetes(suffix string) bool {
	return suffix == "SERVICE_HOST" || strings.HasPrefix(suffix, "SERVICE_PORT") || strings.HasPrefix(suffix, "PORT")
}

func withoutPrefix(names []string) []string {
	short := make([]string, len(names))
	for i, name := range names {
		short[i] = strings.TrimPrefix(name, Prefix)
	}
	return short
}

func knownVariables() []string {
	fields, err := env.GetFieldParamsWithOptions(&Config{}, env.Options{Prefix: Prefix})
	if err != nil {
		panic("fxmodule: " + err.Error()) // Config's own tags
	}
	var names []string
	for _, f := range fields {
		if strings.HasPrefix(f.Key, Prefix) && f.Key != Prefix {
			names = append(names, f.Key)
		}
	}
	slices.Sort(names)
	return names
}
