// Package transports opens a transport by its URL. Each message system has a package below this one, whose page lists the options of
// its URL. Only the [Mux] imports them: a service names its transport in configuration.
//
//	memory://                                 in this process: package memory
//	amqp:// amqps://                          RabbitMQ: package amqp
//	postgres:// postgresql://                 PostgreSQL: package sql
//	mysql:// mariadb://                       MySQL and MariaDB: package sql
//	sqlite://                                 a SQLite file: package sql, and package sqlite for its driver
//
// A program pays for SQLite only if its main package imports the driver:
//
//	import _ "github.com/leatbus/leat/transports/sqlite"
//
// Package transporttest is the contract as a test suite.
package transports
