// Package admin finds, moves, exports, edits and tries poisoned messages, and serves the HTTP endpoint by which another
// process does the same with a transport in memory. Package cli is the command line over it.
package admin
