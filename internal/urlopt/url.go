package urlopt

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Parse reads a URL that may hold a password. Its errors do not repeat the URL, as url.Parse's do. A URL whose user part
// has a character that ends it is refused: it would be read with another host, and the rest of the password would be
// shown and looked up as one. Several hosts, each with or without a port, may stand with commas between them; they are the
// URL's Host as they are.
func Parse(rawURL string) (*url.URL, error) {
	first, hosts, misplaced := dissect(rawURL)
	u, err := url.Parse(first)
	var parseErr *url.Error
	switch {
	case errors.As(err, &parseErr):
		reason, _, _ := strings.Cut(parseErr.Err.Error(), `"`)
		return nil, fmt.Errorf("the URL can't be parsed (%s); %s", strings.TrimSpace(reason), escapes)
	case err != nil:
		return nil, errors.New("the URL can't be parsed; " + escapes)
	case misplaced && u.Opaque != "":
		return nil, fmt.Errorf("the URL has no // behind %[1]s:; write %[1]s://, and %%40 for an @ that is part of a name", u.Scheme)
	case misplaced:
		return nil, errors.New("the URL has an @ where none belongs; " + escapes)
	}
	if hosts != "" {
		u.Host = hosts
	}
	return u, nil
}

const escapes = "in a user name or password write %40 for @, %2F for /, %3F for ?, %23 for #, %3A for : and %25 for %"

// dissect returns the URL with the first of its hosts only, its hosts if there are several, and whether it has an @ that
// is not the one before its host.
func dissect(rawURL string) (first, hosts string, misplaced bool) {
	scheme, rest, _ := strings.Cut(rawURL, ":")
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok { // without // there is no host
		return rawURL, "", strings.Contains(rawURL, "@")
	}
	authority, behind := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, behind = rest[:i], rest[i:]
	}
	misplaced = strings.Contains(behind, "@") || strings.Count(authority, "@") > 1
	user, host := "", authority
	if i := strings.IndexByte(authority, '@'); i >= 0 {
		user, host = authority[:i+1], authority[i+1:]
	}
	one, _, several := strings.Cut(host, ",")
	if misplaced || !several {
		return rawURL, "", misplaced
	}
	return scheme + "://" + user + one + behind, host, false
}

// Show returns what logs, errors and terminals may show of a URL: its scheme, its host and the first segment of its
// path, which names a database or a virtual host. A URL of a file is shown with its whole path. User names,
// passwords and options are left out.
func Show(u *url.URL) string {
	if u == nil {
		return ""
	}
	if u.Opaque != "" { // like sqlite:file.db
		if strings.ContainsAny(u.Opaque, "@") {
			return u.Scheme + ":…"
		}
		return u.Scheme + ":" + u.Opaque
	}
	path := u.EscapedPath()
	if u.Host != "" {
		if i := strings.IndexByte(strings.TrimPrefix(path, "/"), '/'); i >= 0 {
			path = path[:i+1]
		}
	}
	return u.Scheme + "://" + u.Host + path
}
