// Package compare measures leat against its peers, against the same PostgreSQL in the same run. It is
// a module of its own, so that nobody else needs the peers.
//
//	go run ./internal/testservices -services postgres -- go -C bench/compare test -run '^$' -bench .
package compare
