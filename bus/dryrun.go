package bus

import (
	"context"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// DryRun marks a delivery in a dry run, which shows what a handler would do with a message. Messages that the handler publishes
// with its context are collected here and not published, and handlers.Tx rolls its transaction back. All other effects of the
// handler happen; it can skip them if [IsDryRun] reports true.
type DryRun struct {
	mu        sync.Mutex
	published []*message.Message
}

// Published returns the messages that were published so far. It may be called concurrently.
func (r *DryRun) Published() []*message.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.published
}

// IsDryRun reports whether ctx is the context of a handler in a dry run. It may be called concurrently.
func IsDryRun(ctx context.Context) bool {
	d := DeliveryFrom(ctx)
	return d != nil && d.DryRun != nil
}

// captureDryRun collects messages that are published in a dry run. It reports whether ctx belongs to a dry run.
func captureDryRun(ctx context.Context, msgs []*message.Message) bool {
	if !IsDryRun(ctx) {
		return false
	}
	r := DeliveryFrom(ctx).DryRun
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published = append(r.published, msgs...)
	return true
}
