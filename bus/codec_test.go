package bus_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

func TestJSON_rejectsInvalidPayloads(t *testing.T) {
	for name, c := range map[string]struct {
		payload string
		want    string
	}{
		"nothing":                   {"", "payload is empty"},
		"null":                      {"null", "payload is null"},
		"null between spaces":       {" \n null\t", "payload is null"},
		"invalid UTF-8":             {"{\"order_id\":\"\xff\"}", "not valid UTF-8"},
		"broken JSON":               {`{"order_id":`, "unexpected end of JSON input"},
		"no object":                 {`[1,2]`, "cannot unmarshal array"},
		"a wrong type":              {`{"cents":"many"}`, "cannot unmarshal string"},
		"a fraction for an integer": {`{"cents":1.5}`, "cannot unmarshal number 1.5"},
		"a number beyond the type":  {`{"cents":99999999999999999999}`, "cannot unmarshal number"},
		"1e400":                     {`{"cents":1e400}`, "cannot unmarshal number"},
		"a byte order mark":         {"\ufeff{}", "invalid character"},
		"nested 10,001 deep":        {`{"order_id":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001) + `}`, "exceeded max depth"},
		"nested and never closed":   {strings.Repeat("[", 1_000_000), "exceeded max depth"},
		"a second value":            {`{"order_id":"a"} {"order_id":"b"}`, ""},
		"rubbish behind the value":  {`{"order_id":"a"} x`, ""},
	} {
		for _, codec := range []bus.JSON{{}, {Strict: true}} {
			name := name
			if codec.Strict {
				name += ", strictly"
			}
			t.Run(name, func(t *testing.T) {
				var e orderPaid
				err := codec.Unmarshal([]byte(c.payload), &e)
				require.Error(t, err)
				if !codec.Strict || !strings.Contains(c.want, "unexpected end") { // a decoder says it in other words
					require.ErrorContains(t, err, c.want)
				}
			})
		}
	}
}

func TestJSON_decodesValidPayloads(t *testing.T) {
	const payload = `{"order_id":"größer \u003c","cents":9007199254740993}` + "\n"
	for _, codec := range []bus.Codec{bus.JSON{}, bus.JSON{Strict: true}} {
		var e orderPaid
		require.NoError(t, codec.Unmarshal([]byte(payload), &e))
		require.Equal(t, orderPaid{OrderID: "größer <", Cents: 9007199254740993}, e)
		require.Equal(t, "application/json", codec.ContentType())

		again, err := codec.Marshal(e)
		require.NoError(t, err)
		require.JSONEq(t, payload, string(again))
	}
}

func TestStrictJSON_rejectsUnknownFields(t *testing.T) {
	const payload = `{"order_id":"a","tip":5}`
	var e orderPaid
	require.NoError(t, bus.JSON{}.Unmarshal([]byte(payload), &e))
	require.Equal(t, "a", e.OrderID)
	require.ErrorContains(t, bus.JSON{Strict: true}.Unmarshal([]byte(payload), &e), `unknown field "tip"`)
}

// What encoding/json would change into U+FFFD is refused, in both directions.
func TestJSON_refusesTextThatItWouldChange(t *testing.T) {
	type nested struct {
		Text  string            `json:"text"`
		Deep  map[string][]any  `json:"deep"`
		Inner *nested           `json:"inner"`
		Raw   json.RawMessage   `json:"raw,omitempty"`
		Bytes []byte            `json:"bytes"`
		Names map[string]string `json:"names"`
	}
	for _, event := range []any{
		nested{Text: "a\xff"}, &nested{Inner: &nested{Text: "\xc3("}}, nested{Deep: map[string][]any{"x": {1, "\xff"}}}, nested{Names: map[string]string{"\xff": ""}},
	} {
		_, err := bus.JSON{}.Marshal(event)
		require.ErrorContains(t, err, "not valid UTF-8")
	}
	for _, event := range []any{
		nested{Text: "\ufffd"}, nested{Text: `\ufffd`}, nested{Raw: json.RawMessage(`"\ufffd"`)}, nested{Bytes: []byte("\xff")}, nested{Text: "größe"},
	} {
		payload, err := bus.JSON{}.Marshal(event)
		require.NoError(t, err)
		require.NoError(t, bus.JSON{}.Unmarshal(payload, new(nested)))
	}
	loop := &looped{Raw: json.RawMessage(`"\ufffd"`)}
	loop.Self, loop.self = loop, loop
	_, err := bus.JSON{}.Marshal(loop)
	require.NoError(t, err)
	for _, strict := range []bool{false, true} {
		for _, text := range []string{`\ud800`, `\uDC00`, `\ud800x`, `\ud800\u0061`, `\\\ud800`} {
			require.ErrorContains(t, bus.JSON{Strict: strict}.Unmarshal([]byte(`{"text":"`+text+`"}`), new(nested)), "half a surrogate pair", text)
		}
		for _, text := range []string{`\ud83d\ude00`, `\\ud800`, `\u0061`, `\n`, `\ufffd`} {
			require.NoError(t, bus.JSON{Strict: strict}.Unmarshal([]byte(`{"text":"`+text+`"}`), new(nested)), text)
		}
	}
}

// looped points at itself where encoding/json does not look.
type looped struct {
	Raw  json.RawMessage
	Self *looped `json:"-"`
	self *looped
}
