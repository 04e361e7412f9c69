package driver

import "context"

// A GroupRemover is a [Transport] that deletes groups for operators. It is optional; every durable transport of leat is one.
type GroupRemover interface {
	// RemoveGroup deletes a group for ever: its subscriptions, its waiting, delayed and parked messages, and its poison queue. Other
	// groups keep their messages. A process that subscribes to a group of this name later creates it anew, with the messages that are
	// published from then on.
	//
	// It returns [ErrConsumed], and deletes nothing, if the group has a live consumer in any process; [ErrNotFound] if there is no such
	// group; and [ErrUnsupported] if the transport is configured in a way in which it can't find all that belongs to the group. It blocks
	// until the message system answers or ctx is done. After another error a part of the group may be deleted; call it again.
	RemoveGroup(ctx context.Context, group string) error
}
