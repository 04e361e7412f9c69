// Package compare measures leat against its peers, against the same PostgreSQL in the same run. It is
// a module of its own, so that nobody else needs the peers.
//
//	cd bench/compare && LEAT_TEST_POSTGRES_URL=postgres://… go test -run xxx -bench .
package compare
