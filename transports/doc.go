// Package transports opens a transport by its URL. Each message system has a package below this one,
// which nobody but the [Mux] needs to import: a service names its transport in configuration.
//
//	memory://                                   in this process; see package memory
//
// package transporttest is the contract as a test suite.
package transports
