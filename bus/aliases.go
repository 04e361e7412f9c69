package bus

import "github.com/leatbus/leat/bus/driver"

//nolint:revive // package driver documents them
type (
	Transport       = driver.Transport
	TransportHealth = driver.TransportHealth
	PoisonQueue     = driver.PoisonQueue
	PoisonedMessage = driver.PoisonedMessage
	Fault           = driver.Fault
	Outbox          = driver.Outbox
	OutboxStats     = driver.OutboxStats
	Order           = driver.Order
	PanicError      = driver.PanicError
	PublishError    = driver.PublishError
	UnroutableError = driver.UnroutableError
)

// The orders in which a group gets its messages.
const (
	Unordered       = driver.Unordered
	OrderedByKey    = driver.OrderedByKey
	OrderedStrictly = driver.OrderedStrictly
)

// The errors of package driver that services meet.
var (
	ErrClosed      = driver.ErrClosed
	ErrNotFound    = driver.ErrNotFound
	ErrUnroutable  = driver.ErrUnroutable
	ErrUnsupported = driver.ErrUnsupported
)
