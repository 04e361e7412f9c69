package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// service is one row of the table: all that is known about a server.
type service struct {
	name     string   // as in -services, LEAT_TEST_REQUIRE and compose.yaml
	variable string   // where the tests read its URL
	standard []string // URLs tried on the standard loopback port, best first
	account  string   // who runs a private one when root runs the program
	programs []string // what a private one needs; "a|b" means either
	debian   string   // the package that has these programs
	api      string   // port of its HTTP API, which its URL names as the option management; "" if it has none

	// handshake logs in at the URL and tells the server's version.
	handshake func(ctx context.Context, url string) (version string, err error)
	// complete says what a server lacks that the tests need; nil means nothing. It is not asked about servers that the
	// environment names.
	complete func(ctx context.Context, url string) error
	// start launches a private server and tells its URL. It need not wait
	// until the server answers.
	start func(ctx context.Context, box *sandbox) (url string, err error)
}

// services is the table. A new server is one more row.
func services() []service {
	return []service{redisService(), postgresService(), mariadbService(), rabbitmqService()}
}

// choose picks rows by name; no names picks them all.
func choose(table []service, names string) ([]service, error) {
	if names == "" {
		return table, nil
	}
	var chosen []service
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(table, func(s service) bool { return s.name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("testservices: -services: no service %q; known: %s", name, joinNames(table))
		}
		chosen = append(chosen, table[i])
	}
	return chosen, nil
}

func joinNames(list []service) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.name
	}
	return strings.Join(names, ",")
}

// at is the service's best standard URL with another host and port.
func (s service) at(address string) string {
	u, err := url.Parse(s.standard[0])
	if err != nil {
		panic(fmt.Sprintf("testservices: the table's URL of %s: %v", s.name, err)) // a typo in the table
	}
	u.Host = address
	return u.String()
}

func (s service) standardPort() string {
	u, err := url.Parse(s.standard[0])
	if err != nil {
		panic(fmt.Sprintf("testservices: the table's URL of %s: %v", s.name, err))
	}
	return u.Port()
}
