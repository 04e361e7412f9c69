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

type dated struct{}

func (dated) EventType() (string, int) { return "order.paid", 20261129 }

// Events are values of these types, and have none of the methods that leat would call.
type (
	pointerValidates struct{}
	pointerKeyed     struct{}
	pointerDedups    struct{}
)

func (pointerValidates) EventType() (string, int) { return "order.paid", 1 }
func (*pointerValidates) Validate() error         { return nil }
func (pointerKeyed) EventType() (string, int)     { return "order.paid", 1 }
func (*pointerKeyed) PartitionKey() string        { return "key" }
func (pointerDedups) EventType() (string, int)    { return "order.paid", 1 }
func (*pointerDedups) DedupKey() string           { return "key" }

func TestPublish_refusesValuesWhoseMethodsHavePointerReceivers(t *testing.T) {
	b := newBus(t, bus.Config{})
	for want, e := range map[string]bus.Event{
		"order.paid.v1: bus_test.pointerValidates has the method Validate with a pointer receiver": pointerValidates{},
		"PartitionKey": pointerKeyed{},
		"DedupKey":     pointerDedups{},
	} {
		for range 2 {
			require.ErrorContains(t, b.Publish(t.Context(), e), want)
			_, err := bus.Encoder{}.Encode(t.Context(), e)
			require.ErrorContains(t, err, want)
		}
	}
	require.NoError(t, b.Publish(t.Context(), &pointerKeyed{}))
}

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
		"a version that is a date":               {bus.TypeOf[dated], "has version 20261129; versions end at 9999"},
		"Validate with a pointer receiver":       {bus.TypeOf[pointerValidates], "has the method Validate with a pointer receiver"},
		"PartitionKey with a pointer receiver":   {bus.TypeOf[pointerKeyed], "publish and handle *bus_test.pointerKeyed, or give PartitionKey a value receiver"},
		"DedupKey with a pointer receiver":       {bus.TypeOf[pointerDedups], "DedupKey"},
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
