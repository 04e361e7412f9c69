// Package sqlite links the driver of SQLite into a program, so that [transports.Open] and package transports/sql open sqlite://
// URLs. Import it for that alone, in the main package:
//
//	import _ "github.com/leatbus/leat/transports/sqlite"
//
// The driver is SQLite itself, translated to Go: it needs no C compiler, and makes a program some 6 MB larger. That is why a program
// asks for it. The drivers of RabbitMQ, PostgreSQL and MySQL are always there.
//
// The transport is documented at package transports/sql.
//
// [transports.Open]: https://pkg.go.dev/github.com/leatbus/leat/transports#Open
package sqlite

import _ "modernc.org/sqlite" // registers "sqlite" with database/sql
