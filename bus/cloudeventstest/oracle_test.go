package cloudeventstest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	sdk "github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

const generated = 10_000

// sample is an event in pieces: its members in JSON, and what a reader must make of them.
type sample struct {
	members map[string]json.RawMessage
	data    []byte // the payload
}

// text returns the event on the wire, with its members in a random order.
func (s sample) text(r *rand.Rand) []byte {
	names := slices.Sorted(maps.Keys(s.members))
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var b bytes.Buffer
	b.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", name, s.members[name])
	}
	b.WriteByte('}')
	return b.Bytes()
}

func (s sample) set(name string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	s.members[name] = raw
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func word(r *rand.Rand, alphabet string, longest int) string {
	runes := []rune(alphabet)
	var b strings.Builder
	for range 1 + r.IntN(longest) {
		b.WriteRune(pick(r, runes...))
	}
	return b.String()
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz0123456789"
	anyone = "aZ9 -_.:/\\\"'<>&äß中🙂\u2028\ufffd"
)

func text(r *rand.Rand) string { return "x" + word(r, anyone, 20) }

// value returns any JSON.
func value(r *rand.Rand, depth int) any {
	switch n := r.IntN(7); {
	case n == 0:
		return nil
	case n == 1:
		return r.IntN(2) == 0
	case n == 2:
		return r.IntN(1_000_000) - 500_000
	case n == 3:
		return r.Float64()
	case n == 4 && depth > 0:
		return []any{value(r, depth-1), value(r, depth-1)}
	case n == 5 && depth > 0:
		return map[string]any{text(r): value(r, depth-1), text(r): value(r, depth-1)}
	default:
		return text(r)
	}
}

func timeText(r *rand.Rand) string {
	at := time.Unix(r.Int64N(4_000_000_000), r.Int64N(1_000_000_000))
	zone := time.FixedZone("", 60*(r.IntN(24*60)-12*60))
	return at.In(pick(r, time.UTC, zone)).Format(pick(r, time.RFC3339, time.RFC3339Nano))
}

func source(r *rand.Rand) string {
	return pick(r,
		"/"+word(r, lower, 10), "https://shop.example/"+word(r, lower, 10)+"?a=b&c#d", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
		"mailto:cnet@example.com", word(r, lower, 10), "../a/b", "//host:80/x", "/a%20b")
}

// valid makes an event that the specification allows.
func valid(r *rand.Rand) sample {
	s := sample{members: make(map[string]json.RawMessage)}
	s.set("specversion", "1.0")
	s.set("id", text(r))
	s.set("type", text(r))
	s.set("source", source(r))
	if r.IntN(2) == 0 {
		s.set("subject", text(r))
	}
	if r.IntN(2) == 0 {
		s.set("time", timeText(r))
	}
	if r.IntN(3) == 0 {
		s.set("dataschema", pick(r, "https://shop.example/schema/"+word(r, lower, 5), "urn:shop:order#v1"))
	}
	for range r.IntN(4) {
		s.set("x"+word(r, lower, 15), pick[any](r, text(r), "", "true", "7", true, false, r.IntN(1<<31), -r.IntN(1<<31), 0))
	}
	switch r.IntN(6) {
	case 0: // no data
	case 1:
		s.set("datacontenttype", pick(r, "text/plain", "application/xml", "text/csv; charset=utf-8"))
		body := text(r)
		s.set("data", body)
		s.data = []byte(body)
	case 2:
		s.set("datacontenttype", pick(r, "application/octet-stream", "image/png"))
		s.data = make([]byte, 1+r.IntN(30))
		for i := range s.data {
			s.data[i] = byte(r.IntN(256))
		}
		s.set("data_base64", base64.StdEncoding.EncodeToString(s.data))
	default:
		if r.IntN(2) == 0 {
			s.set("datacontenttype", pick(r, "application/json", "application/json; charset=utf-8", "text/json"))
		}
		s.set("data", value(r, 3))
		s.data = s.members["data"]
	}
	return s
}

// readSDK reads and validates. The SDK panics at some invalid data.
func readSDK(text []byte) (e sdk.Event, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	if err = json.Unmarshal(text, &e); err != nil {
		return e, err
	}
	return e, e.Validate()
}

// requireSame holds what leat has read against what the SDK has read.
func requireSame(t *testing.T, e sdk.Event, msg *message.Message, from string) {
	t.Helper()
	h := msg.Metadata
	require.Equal(t, e.ID(), driver.MessageID(msg), from)
	require.Equal(t, e.Type(), h[driver.HeaderType], from)
	require.Equal(t, e.Source(), normal(t, h[driver.HeaderSource]), from)
	require.Equal(t, e.Subject(), h[driver.HeaderSubject], from)
	require.Equal(t, e.DataContentType(), h[driver.HeaderContentType], from)
	require.Equal(t, e.DataSchema(), normal(t, h[driver.HeaderDataSchema]), from)
	require.True(t, e.Time().Equal(driver.MessageTime(msg)), "%s: %s, %s", from, e.Time(), driver.MessageTime(msg))
	extensions := make(map[string]string)
	for name, value := range e.Extensions() {
		extensions[name] = fmt.Sprint(value)
	}
	have := make(map[string]string)
	for header, value := range h {
		switch name, attribute := strings.CutPrefix(header, "ce_"); header {
		case driver.HeaderID, driver.HeaderType, driver.HeaderSource, driver.HeaderSubject, driver.HeaderTime, driver.HeaderContentType, driver.HeaderDataSchema:
		default:
			if attribute {
				have[name] = value
			}
		}
	}
	require.Equal(t, extensions, have, from)
	require.Equal(t, string(compact(e.Data())), string(compact(msg.Payload)), from)
}

func normal(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	require.NoError(t, err)
	return u.String()
}

func compact(data []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil {
		return data
	}
	return b.Bytes()
}

func TestOracle_bothReadValidEventsAlike(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range generated {
		s := valid(r)
		text := s.text(r)
		e, err := readSDK(text)
		require.NoError(t, err, "%s", text)
		msg, err := bus.ParseCloudEvent(text)
		require.NoError(t, err, "%s", text)
		requireSame(t, e, msg, string(text))
		require.Equal(t, string(s.data), string(msg.Payload), "%s", text)

		// What leat writes, the SDK reads as the same event, with the JSON types of its extensions.
		formatted, err := bus.FormatCloudEvent(msg)
		require.NoError(t, err, "%s", text)
		again, err := readSDK(formatted)
		require.NoError(t, err, "%s", formatted)
		requireSame(t, again, msg, string(formatted))
		require.Equal(t, e.Extensions(), again.Extensions(), "%s", formatted)
	}
}

func TestOracle_leatReadsTheSDKsEvents(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range generated {
		e := sdk.New()
		e.SetID(text(r))
		e.SetType(text(r))
		e.SetSource(source(r))
		if r.IntN(2) == 0 {
			e.SetSubject(text(r))
			e.SetTime(time.Unix(r.Int64N(4_000_000_000), r.Int64N(1_000_000_000)))
		}
		for range r.IntN(4) {
			e.SetExtension("x"+word(r, lower, 15), pick[any](r, text(r), true, int32(r.IntN(1<<31))))
		}
		switch r.IntN(3) {
		case 0:
			require.NoError(t, e.SetData("application/json", value(r, 3)))
		case 1:
			require.NoError(t, e.SetData("application/octet-stream", []byte(word(r, "\x00\x01abc", 20))))
		}
		written, err := json.Marshal(e)
		require.NoError(t, err)
		msg, err := bus.ParseCloudEvent(written)
		require.NoError(t, err, "%s", written)
		requireSame(t, e, msg, string(written))
	}
}

// flaws make an event invalid. Where the SDK is known to take it, lax says so.
var flaws = []struct {
	name string
	lax  bool
	do   func(r *rand.Rand, s sample)
}{
	{"a required attribute is missing", false, func(r *rand.Rand, s sample) { delete(s.members, pick(r, "id", "type", "source", "specversion")) }},
	{"a required attribute is empty", false, func(r *rand.Rand, s sample) { s.set(pick(r, "id", "type", "source"), "") }},
	{"another specversion", false, func(r *rand.Rand, s sample) { s.set("specversion", pick(r, "", "0.2", "2.0", "1")) }},
	{"an attribute that must be text is none", false, func(r *rand.Rand, s sample) {
		s.set(pick(r, "id", "type", "source", "subject", "time", "datacontenttype"), pick[any](r, 7, true, []int{1}, map[string]int{"a": 1}))
	}},
	{"an empty optional attribute", true, func(r *rand.Rand, s sample) { s.set(pick(r, "subject", "datacontenttype"), "") }},
	{"a time that is none", false, func(r *rand.Rand, s sample) {
		s.set("time", pick(r, "yesterday", "2026-01-02", "2026-13-01T00:00:00Z", "2026-01-02T03:04:05", "12:00:00Z"))
	}},
	{"an extension that is an object or a list", false, func(r *rand.Rand, s sample) { s.set("xflaw", pick[any](r, []int{1}, map[string]int{"a": 1})) }},
	{"an extension that is a fraction", true, func(_ *rand.Rand, s sample) { s.set("xflaw", 1.5) }},
	{"an extension of more than 32 bits", false, func(r *rand.Rand, s sample) { s.set("xflaw", pick(r, int64(1)<<31, int64(-1)<<40)) }},
	{"a name that no attribute has", true, func(r *rand.Rand, s sample) { s.set(pick(r, "x-flaw", "x_flaw", "x flaw", "größe", "XFlaw"), "x") }},
	{"a content type that is none", true, func(r *rand.Rand, s sample) { s.set("datacontenttype", pick(r, "garbage", "a/b/c", "/", "text/", ";")) }},
	{"a dataschema that is not absolute", false, func(r *rand.Rand, s sample) { s.set("dataschema", pick(r, "/relative", "order", "//host/x")) }},
	{"a source with what no URI has", true, func(r *rand.Rand, s sample) { s.set("source", pick(r, "a b", "/größe", "/a|b", "/%zz", "/<x>")) }},
	{"a control character", true, func(r *rand.Rand, s sample) {
		s.set(pick(r, "id", "type", "subject", "xflaw"), "a"+pick(r, "\x00", "\n", "\x7f", "\u0085"))
	}},
	{"a noncharacter", true, func(r *rand.Rand, s sample) {
		s.set(pick(r, "id", "subject", "xflaw"), pick(r, "\ufffe", "\U0001ffff", "\ufdd0"))
	}},
	{"half a surrogate pair", true, func(r *rand.Rand, s sample) {
		s.members[pick(r, "id", "subject", "xflaw")] = json.RawMessage(pick(r, `"\ud800"`, `"\udc00x"`, `"\ud800\u0041"`))
	}},
	{"both kinds of data", true, func(_ *rand.Rand, s sample) { s.set("data", 1); s.set("data_base64", "AA==") }},
	{"base64 that is none", false, func(r *rand.Rand, s sample) {
		delete(s.members, "data")
		s.set("data_base64", pick(r, "?", "A", "AA="))
	}},
}

func TestOracle_leatRejectsForbiddenEvents(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	took := make(map[string]int)
	for i := range generated {
		flaw := flaws[i%len(flaws)]
		s := valid(r)
		flaw.do(r, s)
		text := s.text(r)
		_, err := bus.ParseCloudEvent(text)
		require.Error(t, err, "%s: %s", flaw.name, text)
		if _, err := readSDK(text); err == nil {
			took[flaw.name]++
			require.True(t, flaw.lax, "the SDK takes it: %s: %s", flaw.name, text)
		}
	}
	for _, flaw := range flaws {
		require.Equal(t, flaw.lax, took[flaw.name] > 0, "%s: the SDK took %d", flaw.name, took[flaw.name])
	}
}
