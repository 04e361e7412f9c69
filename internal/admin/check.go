package admin

import (
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// CheckMessage returns an error if one of the bus's handlers takes the message's type and would refuse the message. It does not block.
func CheckMessage(b *bus.Bus, msg *message.Message) error {
	checked := msg.Copy() // a check may attach a delivery to it
	t, err := bus.Attach(checked).Type()
	if err != nil {
		return nil //nolint:nilerr // of no handler
	}
	for _, h := range b.Handlers() {
		if h.Check == nil || !slices.Contains(h.Types, t) {
			continue
		}
		if err := h.Check(b.Encoder(), checked); err != nil {
			return fmt.Errorf("the handler %s would refuse it: %w", h.Name, err)
		}
	}
	return nil
}
