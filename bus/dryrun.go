package bus

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// DryRun marks a delivery that is tried and undone, to see what a handler would do with a message: what
// the handler publishes with its context is kept here in place of being published, and handlers.Tx rolls
// its transaction back. Other effects happen; a handler that has them can ask [IsDryRun].
type DryRun struct {
	mu        sync.Mutex
	published []*message.Message
}

// Published returns what was published so far. It may be called concurrently.
func (r *DryRun) Published() []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.published
}

// IsDryRun reports whether the handler that ctx belongs to is only tried.
func IsDryRun(ctx context.Context) bool {
	d := DeliveryFrom(ctx)
	return d != nil && d.DryRun != nil
}

// keptInDryRun keeps messages that are published in a dry run, and reports whether it is one.
func keptInDryRun(ctx context.Context, msgs []*message.Message) bool {
	if !IsDryRun(ctx) {
		return false
	}
	r := DeliveryFrom(ctx).DryRun
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published = append(r.published, msgs...)
	return true
}
