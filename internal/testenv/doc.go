// Package testenv provides tests with servers, and with faults of the connections to them.
//
// A test that needs a server asks for its URL:
//
//	url := testenv.Redis(t)
//
// If there is none, the test is skipped with a message that names the fix. Command testservices finds or starts the servers and
// requires them, so that a skip under it is a failure. A [Proxy] is between a client and its server and breaks the connection as
// networks do.
package testenv
