package driver

import (
	"context"
	"runtime/debug"
)

// A ConsumerLister is a [Transport] that lists the consumers of a group with their programs. It is optional. The bus uses it
// at start, to find two programs that share a group although they take different events.
type ConsumerLister interface {
	// Consumers returns the topics of a group and its live consumers, in all processes. Both are empty if the group does not
	// exist. It returns [ErrUnsupported] if the message system can't list them. It blocks until the message system answers or
	// ctx is done, and may be called concurrently.
	Consumers(ctx context.Context, group string) (GroupConsumers, error)
}

// GroupConsumers describes who consumes a group.
type GroupConsumers struct {
	Topics    []string // topics and patterns of the group, those of former consumers included
	Consumers []Consumer
}

// Consumer describes a live consumer of a group.
type Consumer struct {
	Program string   // path of its main package; empty if it is unknown
	Topics  []string // topics and patterns of its subscription; empty if they are unknown
	Place   string   // where it runs, for operators: host and process id
}

// Program returns the path of this program's main package, "" if it is unknown, as for go run with a file.
func Program() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Path == "command-line-arguments" {
		return ""
	}
	return info.Path
}
