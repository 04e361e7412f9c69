package middleware

import (
	"context"
	"errors"
	"time"
)

// A Store records which messages are being handled and which are done. A key is free, claimed by one caller for the length of a
// lease, or marked as done for a time. All methods may be called concurrently, block no longer than ctx allows, and accept keys
// of any length and any bytes. Package storetest tests a store.
type Store interface {
	// Claim claims the key if it is free. The claim's State says whether it was. After an error it is unknown whether the key
	// was claimed: the returned claim can then still be released or marked as done.
	Claim(ctx context.Context, key string, lease time.Duration) (Claim, error)
	// Renew begins the lease again from now. If the claim has expired and the key is free, it claims the key again.
	Renew(ctx context.Context, c Claim, lease time.Duration) error
	// Done marks the key as done for at least keep, even if the claim has expired and the key is free. A store with bounded
	// memory may delete the oldest marks earlier.
	Done(ctx context.Context, c Claim, keep time.Duration) error
	// Release makes the key free again. A free key stays free.
	Release(ctx context.Context, c Claim) error
}

// A LocalStore is a [Store] in the process's memory. Its claims end with the process, so leases never expire and need not be
// renewed. Its methods do not block, and return only [ErrClaimLost] or the context's error, so the dedup step uses neither a
// time budget nor a circuit breaker for it.
type LocalStore interface {
	Store
	// Local does nothing.
	Local()
}

// Claim is the result of [Store].Claim.
type Claim struct {
	Key string
	// Token is the fencing token, which differs from that of all other claims of the same key. It is needed to renew, release
	// or finish the claim.
	Token string
	State ClaimState
	// Left is the rest of another caller's lease if State is InProgress; 0 if it is unknown.
	Left time.Duration
}

// ClaimState is the state of a key after [Store].Claim.
type ClaimState int

// States of a claimed key.
const (
	Claimed    ClaimState = iota + 1 // the key was free, and is the caller's now
	InProgress                       // another caller holds it
	Done                             // it is marked done
)

// ErrClaimLost is returned by Renew, Done and Release of a [Store] if the claim's lease has expired and another caller has
// claimed or finished the key since.
var ErrClaimLost = errors.New("claim lost to another")
