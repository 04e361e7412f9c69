// Package transports opens a transport by its URL. Each message system has a package below this one, which documents the options
// of its URL. Only the [Mux] imports them: a service sets its transport's URL in its configuration.
//
//	memory://                                 in this process: package memory
//	amqp:// amqps://                          RabbitMQ: package amqp
//	postgres:// postgresql://                 PostgreSQL: package sql
//	mysql:// mariadb://                       MySQL and MariaDB: package sql
//	sqlite://                                 a SQLite file: package sql, and package sqlite for its driver
//
// A program links SQLite only if it imports the driver:
//
//	import _ "github.com/leatbus/leat/transports/sqlite"
//
// Package transporttest tests the contract of a transport.
package transports
