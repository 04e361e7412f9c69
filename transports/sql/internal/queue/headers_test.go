package queue

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// headerForms are the forms that headers have in tables, oldest first.
var headerForms = map[string]func(message.Metadata) []byte{"lines": encodeLines, "json": encodeJSON}

func TestHeaders_comeBackExactly(t *testing.T) {
	for form, encode := range headerForms {
		for _, headers := range []message.Metadata{
			{},
			{"": ""},
			{"a": "b", "c": ""},
			{"k=e\\y\n": "v=a\\n\nlue\\"},
			{"\x00\xff": "\x00\xfe\n"},
			{"名前": "値", "\\n": "\\\\n"},
			{`"`: `\"`, "\x01\t\u2028": "\x7f\u00a0<>&"},
			{"base64:": "base64:YQ==", "base64": "base64:no"},
			{`{"a":"b`: `c"}`, "{}": "{}"},
		} {
			text := encode(headers)
			decoded, err := decodeHeaders(text)
			require.NoError(t, err, "%s: %s", form, text)
			require.Equal(t, headers, decoded, "%s: %s", form, text)
		}
	}
	decoded, err := decodeHeaders(nil)
	require.NoError(t, err)
	require.NotNil(t, decoded)
}

// TestHeaders_areJSON checks that headers are valid JSON.
func TestHeaders_areJSON(t *testing.T) {
	headers := message.Metadata{"ce_type": "order.paid", `q"\`: "\n\x01é", "bytes": "\xff\x00", "\xff": "x"}
	var read map[string]string
	require.NoError(t, json.Unmarshal(encodeJSON(headers), &read))
	require.Equal(t, map[string]string{"ce_type": "order.paid", `q"\`: "\n\x01é", "bytes": "base64:/wA=", "base64:/w==": "x"}, read)
}

func TestHeaders_readWhatOthersWrite(t *testing.T) {
	decoded, err := decodeHeaders([]byte(" {\n\t\"a\" : \"\\u00e9\\/\" ,\"b\":\"\"} "))
	require.NoError(t, err)
	require.Equal(t, message.Metadata{"a": "é/", "b": ""}, decoded)
}

func TestHeaders_refuseAnythingElse(t *testing.T) {
	for text, reason := range map[string]string{
		"a":                            errNoObject.Error(),
		"a=b":                          errNoObject.Error(),
		"a\n":                          "no key=value",
		"\\":                           errNoObject.Error(),
		"null":                         errNoObject.Error(),
		`["a"]`:                        errNoObject.Error(),
		`{`:                            errNotString.Error(),
		`{"a"}`:                        errNoObject.Error(),
		`{"a":1}`:                      errNotString.Error(),
		`{"a":null}`:                   errNotString.Error(),
		`{"a":{"b":"c"}}`:              errNotString.Error(),
		`{"a":"b",}`:                   errNotString.Error(),
		`{"a":"b" "c":"d"}`:            errNoObject.Error(),
		`{"a":"b"}{}`:                  errTrailing.Error(),
		`{"a":"b","a":"c"}`:            errTwice.Error(),
		`{"a":"b","\u0061":"c"}`:       errTwice.Error(),
		`{"a":"b`:                      errUnclosed.Error(),
		`{"a":"b\"`:                    errUnclosed.Error(),
		`{"a":"\x"}`:                   "invalid character",
		"{\"a\":\"\x01\"}":             "invalid character",
		"{\"a\":\"\xff\"}":             errNoUTF8.Error(),
		`{"a":"base64:!"}`:             "illegal base64",
		"{\"a\":\"b=c\"}\n{\"":         errTrailing.Error(),
		strings.Repeat(`{"a":`, 1<<20): errNotString.Error(),
	} {
		_, err := decodeHeaders([]byte(text))
		require.ErrorContains(t, err, reason, "%.60s", text)
		require.Less(t, len(err.Error()), 500)
	}
}

// TestHeaders_linesAreNotTakenForJSON checks that no name of a header makes the lines valid JSON. Otherwise a publisher could
// forge private headers.
func TestHeaders_linesAreNotTakenForJSON(t *testing.T) {
	text := encodeLines(message.Metadata{`{"leat_deliver_at":"`: `"}`})
	require.Equal(t, "{\"leat_deliver_at\":\"=\"}\n", string(text))
	decoded, err := decodeHeaders(text)
	require.NoError(t, err)
	require.Equal(t, message.Metadata{`{"leat_deliver_at":"`: `"}`}, decoded)
}

func FuzzHeaders(f *testing.F) {
	f.Add("key", "value")
	f.Add("=\\\n", "\\n=")
	f.Add("base64:", "\xff\"\x00")
	f.Fuzz(func(t *testing.T, key, value string) {
		headers := message.Metadata{key: value, key + "x": value + "="}
		for form, encode := range headerForms {
			decoded, err := decodeHeaders(encode(headers))
			require.NoError(t, err, form)
			require.Equal(t, headers, decoded, form)
		}
		require.True(t, json.Valid(encodeJSON(headers)))
	})
}

func BenchmarkHeaders(b *testing.B) {
	headers := message.Metadata{
		"ce_specversion": "1.0", "ce_id": "0197f3c4-5f5a-7c3e-9a53-0123456789ab", "ce_source": "shop", "ce_type": "order.paid.v1",
		"ce_time": "2026-01-02T15:04:05.123456789Z", "ce_datacontenttype": "application/json", "ce_partitionkey": "customer-4711",
		"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "leat_instance": "0197f3c4-5f5a",
	}
	for form, encode := range headerForms {
		text := encode(headers)
		b.Run(form+"/encode", func(b *testing.B) {
			for b.Loop() {
				encode(headers)
			}
		})
		b.Run(form+"/decode", func(b *testing.B) {
			for b.Loop() {
				_, _ = decodeHeaders(text)
			}
		})
	}
}
