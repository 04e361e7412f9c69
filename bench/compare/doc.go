// Package compare benchmarks leat and similar libraries with the same PostgreSQL in the same run. It is
// a separate module, so that leat does not depend on the others.
//
//	go run ./internal/testservices -services postgres -- go -C bench/compare test -run '^$' -bench .
package compare
