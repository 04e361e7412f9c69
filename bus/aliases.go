package bus

import "github.com/leatbus/leat/bus/driver"

//nolint:revive // package driver documents them
type (
	Transport       = driver.Transport
	PoisonedMessage = driver.PoisonedMessage
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
