package testenv

import (
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// insistence is how long Insist tries.
const insistence = 3 * time.Minute

// Insist calls f, which executes statements of the test itself, until it succeeds. It calls f again if the statements have failed
// because of others: after a deadlock, without a free connection, or while another process writes to the SQLite file. After other
// errors, and after three minutes, it fails the test. f must leave nothing behind when it returns an error.
func Insist(t testing.TB, f func() error) {
	t.Helper()
	err := f()
	for deadline := time.Now().Add(insistence); err != nil && ofOthers(err) && time.Now().Before(deadline); err = f() {
		<-time.After(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ofOthers reports whether a database has refused a statement because of other statements or connections.
func ofOthers(err error) bool {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	var postgres interface{ SQLState() string }
	if errors.As(err, &postgres) {
		switch code := postgres.SQLState(); code {
		case "XX000": // "tuple concurrently updated", of the catalog
			return true
		default: // serialization and deadlocks, connections, lock timeouts, a server that stops or starts
			return strings.HasPrefix(code, "40") || strings.HasPrefix(code, "53") || code == "55P03" || strings.HasPrefix(code, "57P")
		}
	}
	for _, text := range []string{
		"SQLITE_BUSY",
		"Error 1040", "Error 1205", "Error 1213", // MariaDB and MySQL: too many connections, lock wait timeout, deadlock
	} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}
