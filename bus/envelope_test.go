package bus_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// inHandlerOf returns the context of a handler that has got a message with these headers.
func inHandlerOf(uuid string, headers message.Metadata) context.Context {
	d := &bus.Delivery{Delivery: driver.Delivery{Message: &message.Message{UUID: uuid, Metadata: headers}}}
	return d.NewContext(context.Background())
}

func TestEnvelope_isSetOnPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		encoder := bus.Encoder{Source: "shop", Instance: "here"}
		msg, err := encoder.Encode(t.Context(), &orderShipped{OrderID: "o-1", Parcel: "p-1"})
		require.NoError(t, err)
		require.JSONEq(t, `{"order_id":"o-1","parcel":"p-1"}`, string(msg.Payload))
		require.Equal(t, msg.UUID, msg.Metadata[driver.HeaderID])
		require.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, msg.UUID, "a UUIDv7")
		delete(msg.Metadata, driver.HeaderID)
		require.Equal(t, message.Metadata{
			driver.HeaderType:         "order.shipped.v3",
			driver.HeaderSource:       "shop",
			driver.HeaderTime:         "2000-01-01T00:00:00Z",
			driver.HeaderPartitionKey: "o-1",
			driver.HeaderDedupKey:     "o-1/p-1",
			driver.HeaderInstance:     "here",
		}, msg.Metadata)
	})
}

func TestEnvelope_publishOptionsChangeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		msg, err := bus.Encoder{}.Encode(t.Context(), &orderShipped{OrderID: "o-1"},
			bus.WithID("id-1"), bus.WithKey("k-1"), bus.WithSubject("s-1"), bus.WithDelay(time.Hour), bus.WithHeader("tenant", "acme"), bus.WithHeader("ce_tenant", "acme"))
		require.NoError(t, err)
		require.Equal(t, "id-1", msg.UUID)
		e := bus.EnvelopeOf(msg)
		require.Equal(t, "id-1", e.ID)
		require.Equal(t, "k-1", e.PartitionKey, "the option is stronger than the event's method")
		require.Equal(t, "s-1", e.Subject)
		require.Equal(t, "leat", e.Source)
		require.Equal(t, "id-1", e.CorrelationID, "it begins the conversation")
		require.Equal(t, "application/json", e.ContentType)
		require.True(t, time.Now().Equal(e.Time))
		require.Equal(t, "2000-01-01T01:00:00Z", msg.Metadata[driver.HeaderDeliverAt])
		require.Equal(t, "acme", msg.Metadata["tenant"])
		require.NotContains(t, msg.Metadata, driver.HeaderInstance)
	})
}

func TestEnvelope_emptyKeyIsNotSet(t *testing.T) {
	msg, err := bus.Encoder{}.Encode(t.Context(), orderPaid{}, bus.WithID(""), bus.WithKey(""), bus.WithSubject(""), bus.WithDelay(0))
	require.NoError(t, err)
	require.NotEmpty(t, msg.UUID)
	for _, header := range []string{driver.HeaderPartitionKey, driver.HeaderSubject, driver.HeaderDeliverAt, driver.HeaderDedupKey, driver.HeaderContentType} {
		require.NotContains(t, msg.Metadata, header)
	}
}

type textCodec struct{ bus.JSON }

func (textCodec) ContentType() string { return "text/x-order" }

func TestEnvelope_hasTheCodecsContentType(t *testing.T) {
	msg, err := bus.Encoder{Codec: textCodec{}}.Encode(t.Context(), orderPaid{})
	require.NoError(t, err)
	require.Equal(t, "text/x-order", bus.EnvelopeOf(msg).ContentType)
}

func TestEnvelope_handlersPublishInTheConversation(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, c := range map[string]struct {
		uuid    string
		headers message.Metadata
		want    message.Metadata
	}{
		"the first message's id is the correlation": {
			"w-1",
			message.Metadata{driver.HeaderID: "m-1", driver.HeaderTraceParent: parent},
			message.Metadata{driver.HeaderCausationID: "m-1", driver.HeaderCorrelationID: "m-1", driver.HeaderTraceParent: parent},
		},
		"a later one hands its correlation on": {
			"w-2",
			message.Metadata{
				driver.HeaderID: "m-2", driver.HeaderCorrelationID: "c-1", driver.HeaderCausationID: "m-1",
				driver.HeaderTraceParent: parent, driver.HeaderTraceState: "vendor=1", driver.HeaderBaggage: "user=7",
			},
			message.Metadata{
				driver.HeaderCausationID: "m-2", driver.HeaderCorrelationID: "c-1",
				driver.HeaderTraceParent: parent, driver.HeaderTraceState: "vendor=1", driver.HeaderBaggage: "user=7",
			},
		},
		"a foreign one has its Watermill UUID": {
			"w-3", nil, message.Metadata{driver.HeaderCausationID: "w-3", driver.HeaderCorrelationID: "w-3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			msg, err := bus.Encoder{}.Encode(inHandlerOf(c.uuid, c.headers), orderPaid{})
			require.NoError(t, err)
			for key, value := range c.want {
				require.Equal(t, value, msg.Metadata[key], key)
			}
			for _, key := range []string{driver.HeaderTraceParent, driver.HeaderTraceState, driver.HeaderBaggage} {
				require.Equal(t, c.want[key], msg.Metadata[key], key)
			}
		})
	}
}

func TestEnvelope_ofAForeignMessage(t *testing.T) {
	t.Run("without any header", func(t *testing.T) {
		e := bus.EnvelopeOf(&message.Message{UUID: "w-1"})
		require.Equal(t, bus.Envelope{ID: "w-1", CorrelationID: "w-1", ContentType: "application/json"}, e)
	})
	t.Run("its subject is its key", func(t *testing.T) {
		e := bus.EnvelopeOf(&message.Message{UUID: "w-1", Metadata: message.Metadata{driver.HeaderSubject: "o-1"}})
		require.Equal(t, "o-1", e.PartitionKey)
	})
	t.Run("a time that is none", func(t *testing.T) {
		e := bus.EnvelopeOf(&message.Message{UUID: "w-1", Metadata: message.Metadata{driver.HeaderTime: "yesterday"}})
		require.True(t, e.Time.IsZero())
	})
}

func TestEnvelopeFrom_isForHandlers(t *testing.T) {
	_, ok := bus.EnvelopeFrom(t.Context())
	require.False(t, ok)
	require.Nil(t, bus.DeliveryFrom(t.Context()))

	e, ok := bus.EnvelopeFrom(inHandlerOf("w-1", message.Metadata{driver.HeaderType: paidTopic}))
	require.True(t, ok)
	require.Equal(t, paidTopic, e.Type)
}

func TestDeliveryType(t *testing.T) {
	for name, c := range map[string]struct {
		header, topic, payload string
		want                   string
	}{
		"the header names it":                  {"order.paid.v2", "legacy", `{"version":7}`, "order.paid.v2"},
		"else the topic does":                  {"", "order.paid.v3", `{}`, "order.paid.v3"},
		"without a version, the body names it": {"", "order.paid", `{"version":"v6"}`, "order.paid.v6"},
		"a number is the domain's own":         {"order.paid", "", `{"version":17}`, "order.paid.v1"},
		"so is a number as text":               {"", "order.paid", `{"version":"5"}`, "order.paid.v1"},
		"and a semantic version":               {"", "order.paid", `{"version":"v2.0"}`, "order.paid.v1"},
		"and a date":                           {"", "order.paid", `{"version":"2024-10-01"}`, "order.paid.v1"},
		"and a version that can't be":          {"", "order.paid", `{"version":"v0"}`, "order.paid.v1"},
		"and another field":                    {"", "order.paid", `{"Version":"v3"}`, "order.paid.v1"},
		"else it is 1":                         {"order.paid", "", `{"order_id":"a"}`, "order.paid.v1"},
		"a body without a usable version":      {"order.paid", "", `{"version":{"major":2}}`, "order.paid.v1"},
		"a body that is no JSON":               {"order.paid", "", "\x00\xff", "order.paid.v1"},
		"no body":                              {"order.paid", "", "", "order.paid.v1"},
		"a body nested too deep":               {"order.paid", "", `{"version":[[[[1]]]]}`, "order.paid.v1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := bus.Delivery{Delivery: driver.Delivery{Topic: c.topic, Message: &message.Message{Payload: []byte(c.payload), Metadata: message.Metadata{}}}}
			if c.header != "" {
				d.Message.Metadata[driver.HeaderType] = c.header
			}
			typ, err := d.Type()
			require.NoError(t, err)
			require.Equal(t, c.want, typ.String())
		})
	}
	t.Run("nothing names it", func(t *testing.T) {
		_, err := (&bus.Delivery{Delivery: driver.Delivery{Message: &message.Message{Payload: []byte(`{"version":1}`)}}}).Type()
		require.ErrorContains(t, err, "message has no type")
	})
}

func TestDeliveryType_theFieldOfTheVersionIsConfigured(t *testing.T) {
	for field, want := range map[string]string{"": "order.paid.v2", "schema": "order.paid.v3", "-": "order.paid.v1"} {
		b := newBus(t, bus.Config{VersionField: field})
		var got bus.Type
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) (err error) {
			got, err = bus.DeliveryFrom(ctx).Type()
			return err
		}, topics("order.paid"))
		run(t, b)
		msg := newMessage("order.paid", "a")
		msg.Payload = []byte(`{"version":"v2","schema":"v3","-":"v4"}`)
		require.NoError(t, b.PublishMessages(t.Context(), msg))
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, want, got.String())
	}
}

type unencodable struct {
	Reply chan int `json:"reply"`
}

func (unencodable) EventType() (string, int) { return "order.odd", 1 }

func TestEncode_rejectsInvalidEvents(t *testing.T) {
	var nilPointer *orderShipped
	for name, c := range map[string]struct {
		event bus.Event
		want  string
	}{
		"no event":              {nil, "event is nil"},
		"a nil pointer":         {nilPointer, "event is nil"},
		"an invalid event":      {&orderShipped{}, "order.shipped.v3: invalid event: order_id is empty"},
		"what JSON can't say":   {unencodable{Reply: make(chan int)}, "order.odd.v1: encode bus_test.unencodable: json: unsupported type"},
		"a name with a space":   {badName{}, "white space"},
		"version 0":             {badVersion{}, "versions start at 1"},
		"a version in the name": {versionInName{}, "return it as the version instead"},
		"a panicking EventType": {asksItsFields{}, "EventType of bus_test.asksItsFields panics"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bus.Encoder{}.Encode(t.Context(), c.event)
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("an event's own error stays in the chain", func(t *testing.T) {
		_, err := bus.Encoder{}.Encode(t.Context(), refusing{})
		require.ErrorIs(t, err, errBroken)
	})
}

type refusing struct{}

func (refusing) EventType() (string, int) { return "order.refused", 1 }
func (refusing) Validate() error          { return errors.Join(errBroken) }

func TestWithHeader_rejectsLeatsHeaders(t *testing.T) {
	for _, key := range []string{driver.HeaderID, driver.HeaderType, driver.HeaderInstance, driver.HeaderDeliverAt, driver.HeaderFaultError} {
		_, err := bus.Encoder{}.Encode(t.Context(), orderPaid{}, bus.WithHeader(key, "forged"))
		require.ErrorContains(t, err, key)
	}
}
