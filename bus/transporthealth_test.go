package bus_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// patient is a transport whose health the test decides.
type patient struct {
	bus.Transport
	health atomic.Pointer[driver.TransportHealth]
}

func (p *patient) Health() driver.TransportHealth { return *p.health.Load() }

func TestHealth_showsTheTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{Transport: memory.New(memory.Config{})}
		p.health.Store(&driver.TransportHealth{Transport: "fake", Connected: true})
		b := busOver(t, p, bus.Config{})
		handle(t, b, "ledger", ok)
		run(t, b)
		require.Equal(t, []bus.Health{{Group: "shop.ledger", State: bus.Running}}, b.Health())

		for want, health := range map[string]driver.TransportHealth{
			"no route to host":        {Err: errors.New("no route\nto host")},
			"not connected":           {},
			"the disk is full":        {Connected: true, Blocked: "the disk is full"},
			"first it is unreachable": {Err: errors.New("first it is unreachable"), Blocked: "then full"},
		} {
			p.health.Store(&health)
			require.Equal(t, bus.Degraded, b.Health()[0].State)
			require.Equal(t, map[string]string{"transport": want}, b.Health()[0].Degraded)
			told, ok := b.TransportHealth()
			require.True(t, ok)
			require.Equal(t, health, told)
		}
		p.health.Store(&driver.TransportHealth{Connected: true})
		require.Equal(t, bus.Running, b.Health()[0].State)
	})
}

func TestHealth_withoutTransportHealth(t *testing.T) {
	b := busOver(t, struct{ bus.Transport }{memory.New(memory.Config{})}, bus.Config{})
	handle(t, b, "ledger", func(context.Context, *message.Message) error { return nil })
	_, ok := b.TransportHealth()
	require.False(t, ok)
	require.Equal(t, []bus.Health{{Group: "shop.ledger", State: bus.Waiting}}, b.Health())
}
