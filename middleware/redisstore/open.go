package redisstore

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Timeouts of the client of Open. The dedup step's budget is shorter; these end calls that continue in
// the background.
const (
	dialTimeout = time.Second
	callTimeout = time.Second
	poolSize    = 64
)

// Open returns a store with its own client for a URL such as redis://user:password@host:6379/0,
// rediss:// for TLS or unix:// for a socket, with go-redis' options as parameters. It does not
// connect, so the first claim returns an error if Redis can't be reached. Close the store after the bus.
// For Redis Cluster or Sentinel, create the client yourself and use [New].
func Open(rawURL string) (*Store, error) {
	opts, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redisstore: open: %w", readable(rawURL, err))
	}
	opts.ContextTimeoutEnabled = true
	opts.DialTimeout = orDefault(opts.DialTimeout, dialTimeout)
	opts.DialerRetries = 1 // the next message retries
	opts.ReadTimeout = orDefault(opts.ReadTimeout, callTimeout)
	opts.WriteTimeout = orDefault(opts.WriteTimeout, callTimeout)
	opts.PoolTimeout = orDefault(opts.PoolTimeout, callTimeout)
	opts.PoolSize = orDefault(opts.PoolSize, poolSize)
	opts.MaxRetries = orDefault(opts.MaxRetries, 1)
	// Only Redis Cloud supports them; for others, each connection would need an extra round trip.
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}

	client := redis.NewClient(opts)
	s, err := New(client)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	s.owned = client
	return s, nil
}

func orDefault[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// readable returns an error that does not contain the URL. If a password has a special character, any part of the
// parsed URL and of go-redis' error may contain it, so only the name of an option is shown.
func readable(rawURL string, err error) error {
	u, parseErr := url.Parse(rawURL)
	switch option := complainedOption.FindStringSubmatch(err.Error()); {
	case parseErr != nil, strings.Contains(u.RawQuery+u.Path, "@"):
		return errors.New("the URL can't be parsed; it looks like redis://user:password@host:6379/0, " +
			"with special characters in the password percent-encoded")
	case u.Scheme != "redis" && u.Scheme != "rediss" && u.Scheme != "unix":
		return errors.New("the URL's scheme is unknown; it is one of redis, rediss, unix")
	case option != nil && option[1] != "database":
		return fmt.Errorf("the URL's option %s is unknown or has a value that can't be read; "+
			"the options are those of go-redis' ParseURL", option[1])
	default:
		return errors.New("the URL's path is not the number of a database, as in redis://host:6379/0")
	}
}

// complainedOption finds the option that go-redis' error names.
var complainedOption = regexp.MustCompile(`(?:unexpected option: |invalid )([a-z_]+)(?: number| duration| boolean|$)`)
