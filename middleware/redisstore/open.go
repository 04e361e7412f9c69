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

// Timeouts of a client made by Open. The dedup step's budget is shorter; these end what goes on
// behind it.
const (
	dialTimeout = time.Second
	callTimeout = time.Second
	poolSize    = 64
)

// Open makes a store with a client of its own from a URL such as redis://user:password@host:6379/0,
// rediss:// for TLS or unix:// for a socket; go-redis' options follow as parameters. It does not
// connect: a Redis that is away shows at the first claim. Close the store when the bus is closed.
// For Redis Cluster or Sentinel make the client yourself and use [New].
func Open(rawURL string) (*Store, error) {
	opts, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redisstore: open: %w", readable(rawURL, err))
	}
	opts.ContextTimeoutEnabled = true
	opts.DialTimeout = orDefault(opts.DialTimeout, dialTimeout)
	opts.DialerRetries = 1 // the next message tries again
	opts.ReadTimeout = orDefault(opts.ReadTimeout, callTimeout)
	opts.WriteTimeout = orDefault(opts.WriteTimeout, callTimeout)
	opts.PoolTimeout = orDefault(opts.PoolTimeout, callTimeout)
	opts.PoolSize = orDefault(opts.PoolSize, poolSize)
	opts.MaxRetries = orDefault(opts.MaxRetries, 1)
	// Only Redis Cloud answers them; others are asked in vain on every connection.
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

// readable says what is wrong with the URL without showing it. A password with a special character in
// it can end up in any part of the URL and in go-redis' error, so of both nothing is shown but the
// name of an option.
func readable(rawURL string, err error) error {
	u, parseErr := url.Parse(rawURL)
	switch option := complainedOption.FindStringSubmatch(err.Error()); {
	case parseErr != nil, strings.Contains(u.RawQuery+u.Path, "@"):
		return errors.New("the URL can't be read; it looks like redis://user:password@host:6379/0, " +
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
