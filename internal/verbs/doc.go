// Package verbs is the operators' command line: what leat and a service's own binary have in common.
// Each verb has a file. What they do, apart from reading flags and writing tables, is in package operator.
//
// Results go to the standard output, everything else to the standard error. With --json, results are
// JSON lines with the field names of operator.Record and the types beside each verb; those are stable.
package verbs
