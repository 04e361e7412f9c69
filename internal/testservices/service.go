package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// service is one row of the table of servers.
type service struct {
	name     string   // as in -services, LEAT_TEST_REQUIRE and compose.yaml
	variable string   // where the tests read its URL
	standard []string // URLs tried on the standard loopback port, best first
	account  string   // who runs a private one when root runs the program
	programs []string // what a private one needs; "a|b" means either
	debian   string   // the package that has these programs
	api      string   // port of its HTTP API, which its URL names as the option management; "" if it has none

	// handshake logs in at the URL and returns the server's version.
	handshake func(ctx context.Context, url string) (version string, err error)
	// complete returns an error if the server lacks something that the tests need; nil means that nothing is checked. It is not
	// called for servers of the environment's variables.
	complete func(ctx context.Context, url string) error
	// start starts a private server and returns its URL. It need not wait
	// until the server answers.
	start func(ctx context.Context, box *sandbox) (url string, err error)
}

// services returns the table. A new server is one more row.
func services() []service {
	return []service{redisService(), postgresService(), mariadbService(), rabbitmqService()}
}

// choose returns the rows with these names, or all if there are none.
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

// at returns the service's best standard URL with another host and port.
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
