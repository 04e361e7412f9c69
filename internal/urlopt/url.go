package urlopt

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Parse parses a URL that may have a password. Unlike those of url.Parse, its errors do not contain the URL. It returns an error
// if the password has a character that must be escaped: otherwise a part of the password would be taken for the host, logged and
// resolved. There may be several hosts, separated by commas, each with or without a port; the URL's Host then has all of them.
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

// dissect returns the URL with its first host only, all hosts if there are several, and whether it has an @ that is not the one
// before its host.
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

// Show returns the parts of a URL that may be shown in logs, errors and terminals: its scheme, its host and the first segment of
// its path, which names a database or a virtual host, or the whole path of a file. It leaves out user names, passwords and
// options.
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
