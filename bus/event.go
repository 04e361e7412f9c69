package bus

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/leatbus/leat/bus/driver"
)

// Event names itself on the wire. Domain packages satisfy it without importing leat:
//
//	func (OrderPaid) EventType() (name string, version int) { return "order.paid", 1 }
//
// The name and the version are part of the wire format: changing one is a breaking change for every consumer. EventType must
// not depend on the event's fields.
//
// An event may also have any of these methods. They are called on publishing, and Validate also after decoding:
//
//	PartitionKey() string // messages of one key keep their order if a handler asks for it
//	DedupKey() string     // identifies the fact, if the message id does not
//	Validate() error      // an error is permanent
type Event interface {
	EventType() (name string, version int)
}

// maxVersion is the highest version of an event type.
const maxVersion = 9999

// Type is an event's name and version, such as order.paid v2.
type Type struct {
	Name    string
	Version int
}

// String returns the type on the wire: the CloudEvents type and the topic, such as "order.paid.v2".
func (t Type) String() string { return t.Name + ".v" + strconv.Itoa(t.Version) }

// Validate returns an error if the type can't be published.
func (t Type) Validate() error {
	if t.Version < 1 {
		return fmt.Errorf("bus: event type %q has version %d; versions start at 1", t.Name, t.Version)
	}
	if t.Version > maxVersion {
		return fmt.Errorf("bus: event type %q has version %d; versions end at %d: count them, and use no date", t.Name, t.Version, maxVersion)
	}
	if err := driver.ValidateTopic(t.Name); err != nil {
		return fmt.Errorf("bus: event name %q: %w", t.Name, err)
	}
	if _, versioned := parseType(t.Name); versioned {
		return fmt.Errorf("bus: event name %q ends in a version; return it as the version instead", t.Name)
	}
	if s := t.String(); len(s) > driver.MaxTopicBytes {
		return fmt.Errorf("bus: event type %q has %d bytes; at most %d fit", s, len(s), driver.MaxTopicBytes)
	}
	return nil
}

// parseType splits "order.paid.v2" into name and version. ok is false if the last segment is not a version.
func parseType(s string) (t Type, ok bool) {
	dot := strings.LastIndexByte(s, '.')
	if dot <= 0 || dot+2 >= len(s) || s[dot+1] != 'v' {
		return Type{}, false
	}
	version, ok := parseVersion(s[dot+2:])
	if !ok {
		return Type{}, false
	}
	return Type{Name: s[:dot], Version: version}, true
}

// parseVersion reads decimal digits without sign or leading zero.
func parseVersion(s string) (int, bool) {
	if s == "" || s[0] == '0' || len(s) > 9 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

// TypeOf returns the event type of the Go type T. It calls EventType on a zero T, or if T is a pointer, on a pointer to a new
// zero value. It returns an error if T is an interface or its event type is invalid.
func TypeOf[T Event]() (Type, error) {
	goType := reflect.TypeFor[T]()
	var zero T
	switch goType.Kind() {
	case reflect.Pointer:
		zero = reflect.New(goType.Elem()).Interface().(T)
	case reflect.Interface:
		return Type{}, fmt.Errorf("bus: %s is an interface; an event's Go type must be a struct", goType)
	default:
	}
	t, err := typeOf(zero)
	if err != nil {
		return Type{}, err
	}
	if err := t.Validate(); err != nil {
		return t, err
	}
	return t, checkReceivers(t, goType)
}

// checkReceivers returns an error if goType is used as a value, but one of the optional methods has a pointer receiver: the
// method would never be called.
func checkReceivers(t Type, goType reflect.Type) error {
	if goType.Kind() == reflect.Pointer {
		return nil
	}
	for name, method := range map[string]reflect.Type{
		"Validate":     reflect.TypeFor[interface{ Validate() error }](),
		"PartitionKey": reflect.TypeFor[interface{ PartitionKey() string }](),
		"DedupKey":     reflect.TypeFor[interface{ DedupKey() string }](),
	} {
		if reflect.PointerTo(goType).Implements(method) && !goType.Implements(method) {
			return fmt.Errorf("bus: %s: %s has the method %s with a pointer receiver, so it is not called for values; "+
				"publish and handle *%[2]s, or give %[3]s a value receiver", t, goType, name)
		}
	}
	return nil
}

// typeOf calls EventType of one event. A panic in it becomes an error.
func typeOf(e Event) (t Type, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("bus: EventType of %T panics: %v; it must not depend on the event's fields", e, v)
		}
	}()
	t.Name, t.Version = e.EventType()
	return t, nil
}

// isNil reports whether e is nil or holds a nil pointer.
func isNil(e Event) bool {
	if e == nil {
		return true
	}
	v := reflect.ValueOf(e)
	return v.Kind() == reflect.Pointer && v.IsNil()
}
