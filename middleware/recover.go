package middleware

import (
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Recover returns the step that turns a panic into a [*bus.PanicError].
func Recover(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				if d := bus.DeliveryFrom(msg.Context()); d != nil {
					d.Panicked()
				}
				produced, err = nil, driver.NewPanicError(v)
			}
		}()
		return next(msg)
	}
}
