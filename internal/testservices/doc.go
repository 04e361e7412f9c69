// Command testservices finds or starts the servers that leat's tests talk to, then
// runs a command against them:
//
//	go run ./internal/testservices -- go test ./...
//	go run ./internal/testservices -services redis,rabbitmq -- go test ./transports/amqp/...
//	eval "$(go run ./internal/testservices -private -keep)"
//
// Each service is searched for in this order. The first server with a successful
// login is used:
//
//  1. its LEAT_TEST_*_URL variable. If that is set and the server does not answer, it is an
//     error: the tests must not use another server than the requested one.
//  2. its standard loopback port, with default credentials
//  3. a container engine whose daemon answers
//  4. installed programs: a private server in a temporary directory on free
//     ports, run without root's rights
//  5. root on Debian or Ubuntu: apt-get install without autostart, then 4
//
// If a service can't be had, the command is not run; with -optional it is run without.
//
// The command sees the LEAT_TEST_*_URL variables, and in LEAT_TEST_REQUIRE the
// services that must not be skipped (see package testenv). Its exit code
// becomes that of testservices; "go run" itself then exits with 1 for any of them.
// Everything it has started is stopped and removed when the command ends,
// fails or is interrupted.
package main
