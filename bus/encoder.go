package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// An Encoder encodes events into messages with an envelope, and decodes payloads. The zero Encoder uses JSON. It may be used
// concurrently.
type Encoder struct {
	Codec    Codec  // nil means [JSON]
	Source   string // the CloudEvents source: the service
	Instance string // the publishing bus; see [HeaderInstance]

	known *knownTypes // nil means that every type is validated each time
}

// knownTypes caches the wire names of valid types. It needs no bound: a program has few types.
type knownTypes struct {
	mu    sync.RWMutex
	names map[knownType]string
}

type knownType struct {
	Type
	goType reflect.Type
}

// name returns the wire name of a type, or an error if the type is invalid.
func (k *knownTypes) name(t Type, e Event) (string, error) {
	known := knownType{t, reflect.TypeOf(e)}
	if k == nil {
		return t.String(), known.validate()
	}
	k.mu.RLock()
	name, ok := k.names[known]
	k.mu.RUnlock()
	if ok {
		return name, nil
	}
	if err := known.validate(); err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.names == nil {
		k.names = make(map[knownType]string)
	}
	k.names[known] = t.String()
	return k.names[known], nil
}

func (k knownType) validate() error {
	if err := k.Type.Validate(); err != nil {
		return err
	}
	return checkReceivers(k.Type, k.goType)
}

// PublishOption changes how one call publishes.
type PublishOption func(*publication)

// publication has the options of one call.
type publication struct {
	id           string
	key          string
	subject      string
	delay        time.Duration
	headers      []header
	requireRoute bool
	err          error // the options are invalid
}

type header struct{ key, value string }

// WithID sets the event's id in place of a new UUIDv7. If the same fact is published twice under the same id, consumers can
// detect the duplicate. It is for one event only: [Bus.PublishAll] returns an error if it has more.
func WithID(id string) PublishOption { return func(p *publication) { p.id = id } }

// WithKey sets the partition key, in place of the event's PartitionKey method.
func WithKey(key string) PublishOption { return func(p *publication) { p.key = key } }

// WithSubject sets the CloudEvents subject, which names what the event is about, such as the order's id.
func WithSubject(subject string) PublishOption { return func(p *publication) { p.subject = subject } }

// WithDelay delays the event: every group gets it after d at the earliest. Publish returns [ErrUnsupported] if the transport
// does not support delays.
func WithDelay(d time.Duration) PublishOption { return func(p *publication) { p.delay = d } }

// WithHeader sets a header of the message, such as the CloudEvents extension "ce_tenant". Publish returns an error for headers
// that leat sets itself, names that begin with "leat_", attributes that CloudEvents does not allow, and values with control
// characters or invalid UTF-8.
func WithHeader(key, value string) PublishOption {
	return func(p *publication) { p.headers = append(p.headers, header{key, value}) }
}

// RequireRoute makes Publish return an [*UnroutableError] if no group has subscribed to the event. Without it, Publish counts
// and logs such an event.
func RequireRoute() PublishOption { return func(p *publication) { p.requireRoute = true } }

func newPublication(opts []PublishOption) publication {
	if len(opts) == 0 { // nothing escapes to the heap
		return publication{}
	}
	var p publication
	for i, opt := range opts {
		if opt == nil {
			p.err = fmt.Errorf("option %d of %d is nil", i+1, len(opts))
			continue
		}
		opt(&p)
	}
	return p
}

// Encode returns the message for an event. If ctx is a handler's, the message continues the correlation id and the trace of
// the message being handled, and has its id as the causation id. Encode returns an error if the event, its type or an option
// is invalid. It does not block, and may be called concurrently.
func (c Encoder) Encode(ctx context.Context, e Event, opts ...PublishOption) (*message.Message, error) {
	return c.encode(ctx, e, newPublication(opts))
}

func (c Encoder) encode(ctx context.Context, e Event, p publication) (*message.Message, error) {
	if p.err != nil {
		return nil, p.err
	}
	if isNil(e) {
		return nil, errors.New("event is nil")
	}
	t, err := typeOf(e)
	if err != nil {
		return nil, err
	}
	name, err := c.known.name(t, e)
	if err != nil {
		return nil, err
	}
	if v, ok := e.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", t, ErrInvalid, err)
		}
	}
	codec := c.codec()
	payload, err := codec.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("%s: encode %T: %w", t, e, err)
	}

	h := make(message.Metadata, 8)
	h[driver.HeaderID] = p.id
	if p.id == "" {
		h[driver.HeaderID] = NewID()
	}
	h[driver.HeaderType] = name
	h[driver.HeaderSource] = c.source()
	h[driver.HeaderTime] = driver.FormatTime(time.Now())
	setUnlessEmpty(h, driver.HeaderInstance, c.Instance)
	setUnlessEmpty(h, driver.HeaderSubject, p.subject)
	if contentType := codec.ContentType(); contentType != (JSON{}).ContentType() {
		h[driver.HeaderContentType] = contentType
	}
	inherit(ctx, h)
	p.setKeys(h, e)
	if p.delay > 0 {
		h[driver.HeaderDeliverAt] = driver.FormatTime(time.Now().Add(p.delay))
	}
	if err := p.setHeaders(h); err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}

	msg := &message.Message{UUID: h[driver.HeaderID], Metadata: h, Payload: payload}
	msg.SetContext(ctx)
	return msg, nil
}

// setKeys sets the partition key and the dedup key of the event. WithKey goes before the event's method.
func (p publication) setKeys(h message.Metadata, e Event) {
	if k, ok := e.(interface{ PartitionKey() string }); ok {
		setUnlessEmpty(h, driver.HeaderPartitionKey, k.PartitionKey())
	}
	setUnlessEmpty(h, driver.HeaderPartitionKey, p.key)
	if k, ok := e.(interface{ DedupKey() string }); ok {
		setUnlessEmpty(h, driver.HeaderDedupKey, k.DedupKey())
	}
}

func (p publication) setHeaders(h message.Metadata) error {
	for _, extra := range p.headers {
		if err := checkHeader(extra.key, extra.value); err != nil {
			return err
		}
		h[extra.key] = extra.value
	}
	return nil
}

// inherit copies correlation and trace from the message being handled. A tracer, which is a [PublishObserver], later replaces
// the trace by the span of the publish.
func inherit(ctx context.Context, h message.Metadata) {
	d := DeliveryFrom(ctx)
	if d == nil {
		return
	}
	parent := d.Message.Metadata
	id := driver.MessageID(d.Message)
	h[driver.HeaderCausationID] = id
	h[driver.HeaderCorrelationID] = id
	setUnlessEmpty(h, driver.HeaderCorrelationID, parent[driver.HeaderCorrelationID])
	setUnlessEmpty(h, driver.HeaderTraceParent, parent[driver.HeaderTraceParent])
	setUnlessEmpty(h, driver.HeaderTraceState, parent[driver.HeaderTraceState])
	setUnlessEmpty(h, driver.HeaderBaggage, parent[driver.HeaderBaggage])
}

// reservedHeader reports whether only leat may set the header.
func reservedHeader(key string) bool {
	switch key {
	case driver.HeaderID, driver.HeaderSource, driver.HeaderType, driver.HeaderTime, driver.HeaderSpecVersion, driver.HeaderContentType:
		return true
	default:
		return strings.HasPrefix(key, ownPrefix)
	}
}

func setUnlessEmpty(h message.Metadata, key, value string) {
	if value != "" {
		h[key] = value
	}
}

// Decode decodes a message's payload into event, a pointer. It returns an error if the payload can't be decoded, or if the
// message has another content type than the codec reads. It may be called concurrently.
func (c Encoder) Decode(msg *message.Message, event any) error {
	codec := c.codec()
	if err := checkContentType(codec, msg); err != nil {
		return err
	}
	return codec.Unmarshal(msg.Payload, event)
}

func (c Encoder) codec() Codec {
	if c.Codec == nil {
		return JSON{}
	}
	return c.Codec
}

func (c Encoder) source() string {
	if c.Source == "" {
		return "leat"
	}
	return c.Source
}

// encodeAll encodes all events or none.
func (c Encoder) encodeAll(ctx context.Context, events []Event, opts []PublishOption) ([]*message.Message, publication, error) {
	p := newPublication(opts)
	if p.id != "" && len(events) > 1 {
		return nil, p, errors.New("the option ID is for one event; publish them one by one")
	}
	msgs := make([]*message.Message, len(events))
	for i, e := range events {
		msg, err := c.encode(ctx, e, p)
		switch {
		case err != nil && len(events) > 1:
			return nil, p, fmt.Errorf("event %d of %d: %w", i+1, len(events), err)
		case err != nil:
			return nil, p, err
		}
		msgs[i] = msg
	}
	return msgs, p, nil
}

// prepare validates messages that are encoded already, and marks them as published by this bus.
func (c Encoder) prepare(msgs []*message.Message) error {
	for i, msg := range msgs {
		if msg == nil {
			return fmt.Errorf("message %d of %d: message is nil", i+1, len(msgs))
		}
		if msg.Metadata == nil {
			msg.Metadata = message.Metadata{}
		}
		if err := driver.ValidateTopic(driver.TopicOf(msg)); err != nil {
			return fmt.Errorf("message %s: its %s: %w", driver.MessageID(msg), driver.HeaderType, err)
		}
		if err := driver.RefusePrivate(msg); err != nil {
			return err
		}
		msg.Metadata[driver.HeaderInstance] = c.Instance
	}
	return nil
}
