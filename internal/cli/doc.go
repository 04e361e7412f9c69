// Package cli implements the operators' command line that cmd/leat and a service's own binary share. Each command has a
// file. What they do, apart from reading flags and writing tables, is in package admin.
//
// Results go to the standard output, everything else to the standard error. With --json, results are JSON lines with the
// field names of admin.Record and of the types beside each command; those are stable.
package cli
