// Package intx marks the contexts of calls that the bus makes while its caller has an open transaction.
package intx

import "context"

type key struct{}

// With marks a context.
func With(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, true) }

// Is reports whether the context is marked: the called function must not wait for the end of that transaction.
func Is(ctx context.Context) bool { return ctx.Value(key{}) != nil }
