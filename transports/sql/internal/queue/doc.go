// Package queue has the transport over leat's tables: groups, messages, consumers and their leases. Package transports/sql is its public
// face and explains how it works, and transports/sql/outbox uses a [PrivateGroup] of it.
//
// To read the code, begin with the rows (group.go, groups.go, consumers.go, record.go and database.State, which has a diagram), then read
// how messages are inserted (insert.go, publisher.go), claimed (claims.go, keyqueues.go) and settled (settle.go). core.go has what the
// receivers of a transport share. DESIGN.md lists all files from the bottom.
package queue
