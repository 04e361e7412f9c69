package middleware

import (
	"context"
	"errors"
	"time"
)

// Store remembers which messages are being handled and which are done. A key is free, claimed by one
// caller for the length of a lease, or marked done for a while. All methods may be called
// concurrently, block no longer than ctx allows, and take keys of any length and any bytes. What a
// store has to keep is tested by package storetest.
type Store interface {
	// Claim takes the key where it is free, and says in the claim's state what it found. On an error
	// nobody knows whether the key was taken: the returned claim then names what may have been
	// taken, so that it can be released or marked done.
	Claim(ctx context.Context, key string, lease time.Duration) (Claim, error)
	// Renew makes the lease run anew from now. Where the claim has run out and the key is free, it
	// takes the key again.
	Renew(ctx context.Context, c Claim, lease time.Duration) error
	// Done marks the key as done for at least keep, also where the claim has run out and the key is
	// free. A store with bounded memory may forget the oldest marks earlier.
	Done(ctx context.Context, c Claim, keep time.Duration) error
	// Release makes the key free again. A free key stays free.
	Release(ctx context.Context, c Claim) error
}

// LocalStore is a store in the process's own memory. Its claims die with the process, so no lease
// runs out and none has to be renewed; its calls neither wait for anything nor fail but with
// [ErrClaimLost] or the context's error, so they need neither a time budget nor a circuit breaker.
type LocalStore interface {
	Store
	// Local does nothing.
	Local()
}

// Claim is what a store knows of a key, seen by the caller who asked for it.
type Claim struct {
	Key string
	// Token is the fencing token: it tells this claim from all others of the same key. Only who
	// has it can renew, release or finish the claim.
	Token string
	State ClaimState
	// Left is what remains of another caller's lease when State is InProgress; 0 where the store
	// can't tell.
	Left time.Duration
}

// ClaimState is what a store found when a key was to be claimed.
type ClaimState int

// States of a claimed key.
const (
	Claimed    ClaimState = iota + 1 // the key was free, and is the caller's now
	InProgress                       // another caller holds it
	Done                             // it is marked done
)

// ErrClaimLost is what a store's Renew, Done and Release answer when the key is no longer the
// claim's: its lease ran out, and another caller has claimed or finished the key since.
var ErrClaimLost = errors.New("claim lost to another")
