package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
)

// report prints one aligned line about a service.
func report(w io.Writer, a answer) {
	fmt.Fprintf(w, "testservices  %-9s %-9s %-16s %s\n", a.service.name, shortVersion(a.version), a.how, mask(a.url))
}

// mask hides what may be a password in a URL.
func mask(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "(not a URL)"
	}
	query := u.Query()
	for name := range query {
		if strings.Contains(strings.ToLower(name), "pass") {
			query.Set(name, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}

// shortVersion cuts what distributions add: "15.18 (Debian …)", "10.11.19-MariaDB-0+deb12u1".
func shortVersion(version string) string {
	short, _, _ := strings.Cut(version, " ")
	short, _, _ = strings.Cut(short, "-")
	return short
}

// exports prints shell lines that bring the services into the caller's shell.
func exports(w io.Writer, found []answer, stops []string) {
	for _, a := range found {
		fmt.Fprintf(w, "export %s='%s'\n", a.service.variable, strings.ReplaceAll(a.url, "'", `'\''`))
	}
	for _, stop := range stops {
		fmt.Fprintf(w, "# to stop: %s\n", stop)
	}
}
