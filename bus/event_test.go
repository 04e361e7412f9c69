package bus_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

type badName struct{}

func (badName) EventType() (string, int) { return "order paid", 1 }

type badVersion struct{}

func (badVersion) EventType() (string, int) { return "order.paid", 0 }

type versionInName struct{}

func (versionInName) EventType() (string, int) { return "order.paid.v2", 1 }

type longName struct{}

func (longName) EventType() (string, int) { return strings.Repeat("o", 254), 1 }

type asksItsFields struct{ kind *string }

func (e asksItsFields) EventType() (string, int) { return *e.kind, 1 }

type embedsNothing struct{ bus.Event }

func TestTypeOf(t *testing.T) {
	t.Run("a struct", func(t *testing.T) {
		typ, err := bus.TypeOf[orderPaid]()
		require.NoError(t, err)
		require.Equal(t, bus.Type{Name: "order.paid", Version: 1}, typ)
		require.Equal(t, "order.paid.v1", typ.String())
	})
	t.Run("a pointer", func(t *testing.T) {
		typ, err := bus.TypeOf[*orderShipped]()
		require.NoError(t, err)
		require.Equal(t, "order.shipped.v3", typ.String())
	})
	t.Run("a pointer to a struct whose method has a value receiver", func(t *testing.T) {
		typ, err := bus.TypeOf[*orderPaid]()
		require.NoError(t, err)
		require.Equal(t, "order.paid.v1", typ.String())
	})

	for name, c := range map[string]struct {
		typeOf func() (bus.Type, error)
		want   string
	}{
		"an interface":                           {bus.TypeOf[bus.Event], "is an interface; an event's Go type must be a struct"},
		"a name with a space":                    {bus.TypeOf[badName], "white space"},
		"version 0":                              {bus.TypeOf[badVersion], "versions start at 1"},
		"a version in the name":                  {bus.TypeOf[versionInName], "return it as the version instead"},
		"a name that is too long":                {bus.TypeOf[longName], "257 bytes; at most 255 fit"},
		"EventType that asks the event's fields": {bus.TypeOf[asksItsFields], "must not depend on the event's fields"},
		"an embedded event that is not there":    {bus.TypeOf[embedsNothing], "EventType of bus_test.embedsNothing panics"},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			_, err := c.typeOf()
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestParseType(t *testing.T) {
	for s, want := range map[string]bus.Type{
		"order.paid.v1":       {Name: "order.paid", Version: 1},
		"paid.v12":            {Name: "paid", Version: 12},
		"a.v1.v2":             {Name: "a.v1", Version: 2},
		"order.v999999999":    {Name: "order", Version: 999999999},
		"bestellung.größe.v3": {Name: "bestellung.größe", Version: 3},
	} {
		got, ok := bus.ParseType(s)
		require.True(t, ok, s)
		require.Equal(t, want, got)
		require.Equal(t, s, got.String(), "it reads what String writes")
	}
	for _, s := range []string{
		"", ".", "v1", ".v1", "order", "order.paid", "order.v", "order.v0", "order.v01", "order.v-1", "order.v+1", "order.v1 ",
		"order.V1", "order.1", "order.v1a", "order.v1.", "order.v9999999999", "order.v99999999999999999999",
	} {
		_, ok := bus.ParseType(s)
		require.False(t, ok, s)
	}
}
