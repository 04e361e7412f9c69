package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// shared is a transport whose group has other consumers.
type shared struct {
	*memory.Transport
	consumers func(call int) (driver.GroupConsumers, error)
	calls     int
	joined    []string
}

func (s *shared) Consumers(_ context.Context, group string) (driver.GroupConsumers, error) {
	s.calls++
	return s.consumers(s.calls)
}

func (s *shared) Subscribe(ctx context.Context, sub driver.Subscription) (driver.Receiver, error) {
	s.joined = append(s.joined, sub.Group)
	return s.Transport.Subscribe(ctx, sub)
}

func TestRun_refusesAGroupOfAnotherProgram(t *testing.T) {
	const billing, own = "acme.example/shop/cmd/billing", "github.com/leatbus/leat/bus.test"
	require.Equal(t, own, driver.Program())
	by := func(program string, topics ...string) driver.GroupConsumers {
		return driver.GroupConsumers{Topics: topics, Consumers: []driver.Consumer{{Program: program, Topics: topics, Place: "host/7"}}}
	}
	for name, c := range map[string]struct {
		found   driver.GroupConsumers
		late    bool // the other one is found after this one has joined only
		err     error
		refused bool
		share   bool // Config.ShareGroups
		logged  string
	}{
		"another program that takes other events":              {found: by(billing, "invoice.sent.v1"), refused: true},
		"another program, on purpose":                          {found: by(billing, "invoice.sent.v1"), share: true, logged: "is consumed by another program that takes none of the same events"},
		"the same, which starts at the same time":              {found: by(billing, "invoice.sent.v1"), late: true, refused: true},
		"another program that takes patterns of other events":  {found: by(billing, "invoice.>", "order.*.*.v1"), refused: true},
		"another program that takes one of its events":         {found: by(billing, "invoice.sent.v1", paidTopic)},
		"another program that takes a pattern of its events":   {found: by(billing, "order.*.v1")},
		"another program that takes everything":                {found: by(billing, ">")},
		"another program whose topics are unknown":             {found: by(billing)},
		"another release of this program with other events":    {found: by(own, "order.settled.v1"), logged: "has only other topics"},
		"a program of an older release of leat":                {found: by("", "order.settled.v1"), logged: "has only other topics"},
		"a group without consumers that has other topics":      {found: driver.GroupConsumers{Topics: []string{"invoice.sent.v1"}}, logged: "has only other topics"},
		"a group without consumers that has one of its topics": {found: driver.GroupConsumers{Topics: []string{"invoice.sent.v1", paidTopic}}},
		"a new group":                        {},
		"a message system that fails":        {err: errors.New("the API is away"), logged: "the API is away"},
		"a message system that does not say": {err: driver.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &shared{Transport: memory.New(memory.Config{}), consumers: func(call int) (driver.GroupConsumers, error) {
				if c.late && call == 1 {
					return driver.GroupConsumers{}, nil
				}
				return c.found, c.err
			}}
			log := new(testenv.Buffer)
			b := busOver(t, transport, bus.Config{ShareGroups: c.share, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
			handle(t, b, "ledger", ok)
			if c.refused {
				err := b.Run(t.Context())
				require.ErrorContains(t, err, `group "shop.ledger" is consumed by another program, `+billing+` on host/7, which takes invoice.`)
				require.ErrorContains(t, err, "LEAT_SERVICE")
				require.ErrorContains(t, err, "set LEAT_SHARE_GROUPS=on or Config.ShareGroups")
				require.Equal(t, c.late, len(transport.joined) > 0, "its topics stay with a group that it has joined")
				return
			}
			require.NoError(t, run(t, b)())
			if c.logged == "" {
				require.Empty(t, log.String())
			} else {
				require.Contains(t, log.String(), c.logged)
			}
			if c.share {
				require.Equal(t, 1, strings.Count(log.String(), c.logged), "once, although the consumers could be looked up twice")
			}
		})
	}
}
