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

// mask hides a possible password in a URL.
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

// shortVersion removes the additions of distributions: "15.18 (Debian …)", "10.11.19-MariaDB-0+deb12u1".
func shortVersion(version string) string {
	short, _, _ := strings.Cut(version, " ")
	short, _, _ = strings.Cut(short, "-")
	return short
}

// exports prints shell commands that set the services' variables.
func exports(w io.Writer, found []answer, stops []string) {
	for _, a := range found {
		fmt.Fprintf(w, "export %s='%s'\n", a.service.variable, strings.ReplaceAll(a.url, "'", `'\''`))
	}
	for _, stop := range stops {
		fmt.Fprintf(w, "# to stop: %s\n", stop)
	}
}
