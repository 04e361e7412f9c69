// Package operator is what operators do with a bus, apart from how they say it: finding poisoned
// messages, moving them in bulk, writing them down and back, asking a handler what it would do, and the
// admin endpoint by which another process does the same with a transport in memory. The command line is
// in package verbs.
package operator
