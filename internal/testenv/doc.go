// Package testenv gives tests their servers, and faults in the way to them.
//
// A test that needs a server asks for its URL:
//
//	url := testenv.Redis(t)
//
// and is skipped, with the fix in the message, where there is none. Command
// testservices finds or starts the servers, and requires them, so that a skip there is
// a failure. [Proxy] stands between a client and its server and breaks the
// connection in the ways networks do.
package testenv
