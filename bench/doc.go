// Package bench measures. Each benchmark runs leat and a peer, or the floor below it, in alternating
// rounds of one run and reports the ratio, because absolute figures say more of the machine than of
// the code:
//
//	go run ./internal/testservices -- go test -run '^$' -bench . ./bench/...
package bench
