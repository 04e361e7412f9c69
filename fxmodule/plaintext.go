package fxmodule

import (
	"cmp"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/leatbus/leat/internal/urlopt"
)

// warnUnverified logs the URLs of connections that others on the network can read or change: they leave this machine and do not
// use TLS with a verified certificate.
func (c Config) warnUnverified(logger *slog.Logger) {
	for _, v := range []struct{ name, url string }{
		{"URL", c.URL}, {"OUTBOX_URL", c.OutboxURL}, {"INBOX_URL", c.InboxURL}, {"REDIS_URL", c.RedisURL},
	} {
		u, err := urlopt.Parse(strings.TrimSpace(v.url))
		if err != nil {
			continue // opening it returns the error
		}
		if fix := unverified(u); fix != "" {
			logger.Warn("leat: connection without verified TLS", "variable", Prefix+v.name, "url", urlopt.Show(u), "fix", fix)
		}
	}
}

// unverified returns how to verify the server of a connection, "" if it is verified or on this machine.
func unverified(u *url.URL) (fix string) {
	if !slices.ContainsFunc(strings.Split(u.Host, ","), elsewhere) {
		return ""
	}
	query := u.Query()
	switch u.Scheme {
	case "amqp":
		return "write amqps://"
	case "redis":
		return "write rediss://"
	case "postgres", "postgresql":
		mode := query.Get("sslmode")
		mode = cmp.Or(mode, os.Getenv("PGSSLMODE"))
		root := query.Has("sslrootcert") || os.Getenv("PGSSLROOTCERT") != ""
		if mode != "verify-full" && mode != "verify-ca" && (mode != "require" || !root) { // pgx verifies with a root certificate
			return "write sslmode=verify-full"
		}
	case "mysql", "mariadb":
		if query.Get("socket") == "" && query.Get("tls") != "true" {
			return "write tls=true"
		}
	}
	return ""
}

// elsewhere reports whether a host, with or without a port, may be another machine.
func elsewhere(hostport string) bool {
	host := (&url.URL{Host: hostport}).Hostname()
	ip, err := netip.ParseAddr(host)
	return host != "" && host != "localhost" && (err != nil || !ip.IsLoopback())
}
