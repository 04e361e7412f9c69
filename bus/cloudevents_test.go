package bus_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// cloudEvent returns a valid event's text with members put into it.
func cloudEvent(members string) string {
	const minimal = `{"specversion":"1.0","id":"e-1","source":"/shop","type":"order.paid.v1"`
	if members == "" {
		return minimal + "}"
	}
	return minimal + "," + members + "}"
}

func TestParseCloudEvent_validEvents(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		headers message.Metadata // beside id, source and type
		payload string
	}{
		"only what is required": {cloudEvent(``), nil, ``},
		"data, byte for byte":   {cloudEvent(`"data": {"b": 1.50,  "a":"\u00e4<"} `), nil, `{"b": 1.50,  "a":"\u00e4<"}`},
		"every attribute": {
			cloudEvent(`"subject":"o-1","time":"2026-01-02T03:04:05.678+02:00","dataschema":"https://shop.example/s","datacontenttype":"application/json","data":1`),
			message.Metadata{
				driver.HeaderSubject: "o-1", driver.HeaderTime: "2026-01-02T03:04:05.678+02:00",
				driver.HeaderDataSchema: "https://shop.example/s", driver.HeaderContentType: "application/json",
			},
			`1`,
		},
		"extensions: text, boolean, integer": {
			cloudEvent(`"tenant":"acme","sampled":true,"rank":-2147483648,"max":2147483647,"empty":""`),
			message.Metadata{
				"ce_tenant": "acme", "ce_sampled": "true", "ce_rank": "-2147483648", "ce_max": "2147483647", "ce_empty": "",
				"leat_ce_types": "max rank sampled",
			},
			``,
		},
		"trace and correlation under their own names": {
			cloudEvent(`"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","correlationid":"c-1","causationid":"e-0","partitionkey":"k"`),
			message.Metadata{
				driver.HeaderTraceParent:   "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
				driver.HeaderCorrelationID: "c-1", driver.HeaderCausationID: "e-0", driver.HeaderPartitionKey: "k",
			},
			``,
		},
		"null is absent":                     {cloudEvent(`"subject":null,"time":null,"tenant":null,"datacontenttype":null`), nil, ``},
		"a time in small letters":            {cloudEvent(`"time":"2026-01-02t03:04:05z"`), message.Metadata{driver.HeaderTime: "2026-01-02t03:04:05z"}, ``},
		"a leap second":                      {cloudEvent(`"time":"2016-12-31T23:59:60.5Z"`), message.Metadata{driver.HeaderTime: "2016-12-31T23:59:60.5Z"}, ``},
		"text of another media type":         {cloudEvent(`"datacontenttype":"text/plain","data":"one\ntwo"`), message.Metadata{driver.HeaderContentType: "text/plain"}, "one\ntwo"},
		"text as JSON keeps its quotes":      {cloudEvent(`"datacontenttype":"application/json; charset=utf-8","data":"one"`), message.Metadata{driver.HeaderContentType: "application/json; charset=utf-8"}, `"one"`},
		"a media type that ends in +json":    {cloudEvent(`"datacontenttype":"application/vnd.shop+json","data":{"a":1}`), message.Metadata{driver.HeaderContentType: "application/vnd.shop+json"}, `{"a":1}`},
		"JSON under a media type of another": {cloudEvent(`"datacontenttype":"application/xml","data":{"a":1}`), message.Metadata{driver.HeaderContentType: "application/xml"}, `{"a":1}`},
		"binary data":                        {cloudEvent(`"data_base64":"AP8B"`), nil, "\x00\xff\x01"},
		"data beside no binary data":         {cloudEvent(`"data":1,"data_base64":null`), nil, `1`},
		"data null is JSON":                  {cloudEvent(`"data":null`), nil, `null`},
		"a source that is a URN":             {strings.Replace(cloudEvent(``), "/shop", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", 1), message.Metadata{driver.HeaderSource: "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"}, ``},
		"white space around":                 {"\r\n\t" + cloudEvent(``) + " \n", nil, ``},
		"a type that no topic could be":      {strings.Replace(cloudEvent(``), "order.paid.v1", "com.shop/order paid", 1), message.Metadata{driver.HeaderType: "com.shop/order paid"}, ``},
		"data nested 9,990 deep":             {cloudEvent(`"data":` + strings.Repeat("[", 9_990) + strings.Repeat("]", 9_990)), nil, strings.Repeat("[", 9_990) + strings.Repeat("]", 9_990)},
	} {
		t.Run(name, func(t *testing.T) {
			msg, err := bus.ParseCloudEvent([]byte(c.text))
			require.NoError(t, err)
			want := message.Metadata{driver.HeaderID: "e-1", driver.HeaderSource: "/shop", driver.HeaderType: paidTopic}
			maps.Copy(want, c.headers)
			require.Equal(t, want, msg.Metadata)
			require.Equal(t, c.payload, string(msg.Payload))
			require.Equal(t, "e-1", msg.UUID)
		})
	}
}

func TestParseCloudEvent_leapSecondIsTheNextSecond(t *testing.T) {
	msg := message.NewMessage("1", nil)
	msg.Metadata[driver.HeaderTime] = "2016-12-31t23:59:60.5Z"
	require.Equal(t, time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC), driver.MessageTime(msg))
}

func TestParseCloudEvent_invalidEvents(t *testing.T) {
	without := func(attribute string) string {
		var members map[string]any
		if err := json.Unmarshal([]byte(cloudEvent(``)), &members); err != nil {
			panic(err)
		}
		delete(members, attribute)
		text, _ := json.Marshal(members)
		return string(text)
	}
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                         {``, "not a JSON object"},
		"no JSON":                         {`order paid`, "not a JSON object"},
		"half an object":                  {cloudEvent(``)[:40], "not a JSON object"},
		"two objects":                     {cloudEvent(``) + cloudEvent(``), "not a JSON object"},
		"an array (the batch format)":     {`[` + cloudEvent(``) + `]`, "not a JSON object"},
		"null":                            {`null`, "not a JSON object: null"},
		"invalid UTF-8":                   {cloudEvent("\"tenant\":\"\xff\""), "not valid UTF-8"},
		"a byte order mark":               {"\ufeff" + cloudEvent(``), "not a JSON object"},
		"no specversion":                  {without("specversion"), "attribute specversion is missing"},
		"no id":                           {without("id"), "attribute id is missing"},
		"no source":                       {without("source"), "attribute source is missing"},
		"no type":                         {without("type"), "attribute type is missing"},
		"an empty id":                     {strings.Replace(cloudEvent(``), "e-1", "", 1), "attribute id is missing or empty"},
		"a null id":                       {strings.Replace(cloudEvent(``), `"e-1"`, "null", 1), "attribute id is missing or empty"},
		"an id that is a number":          {strings.Replace(cloudEvent(``), `"e-1"`, "1", 1), "attribute id: 1 is not a string"},
		"a specversion of 0.3":            {strings.Replace(cloudEvent(``), `"1.0"`, `"0.3"`, 1), `specversion is "0.3"`},
		"a specversion that is a number":  {strings.Replace(cloudEvent(``), `"1.0"`, `1.0`, 1), "attribute specversion"},
		"a source that is no URI":         {strings.Replace(cloudEvent(``), "/shop", "://%zz", 1), "not a URI reference"},
		"a source with a space":           {strings.Replace(cloudEvent(``), "/shop", "my shop", 1), `source "my shop" is not a URI reference`},
		"a source that is no ASCII":       {strings.Replace(cloudEvent(``), "/shop", "/größe", 1), "not a URI reference"},
		"a source with a broken escape":   {strings.Replace(cloudEvent(``), "/shop", "/%zz", 1), "not a URI reference"},
		"a relative dataschema":           {cloudEvent(`"dataschema":"/schemas/1"`), `dataschema "/schemas/1" is not an absolute URI`},
		"a dataschema with a space":       {cloudEvent(`"dataschema":"https://a/b c"`), "not an absolute URI"},
		"a noncharacter":                  {cloudEvent("\"tenant\":\"\ufffe\""), "attribute tenant: it has U+FFFE, which is no character"},
		"a noncharacter of another plane": {cloudEvent(`"tenant":"\ud83f\udfff"`), "attribute tenant: it has U+1FFFF, which is no character"},
		"half a surrogate pair":           {cloudEvent(`"tenant":"\ud800"`), "attribute tenant: it has half a surrogate pair"},
		"the other half":                  {cloudEvent(`"tenant":"\\\uDC00"`), "attribute tenant: it has half a surrogate pair"},
		"two halves of two pairs":         {cloudEvent(`"tenant":"\ud800\ud800"`), "attribute tenant: it has half a surrogate pair"},
		"half a surrogate pair in text":   {cloudEvent(`"datacontenttype":"text/plain","data":"\ud800"`), "data: it has half a surrogate pair"},
		"a content type that is none":     {cloudEvent(`"datacontenttype":"garbage"`), `datacontenttype "garbage" is not a media type`},
		"a content type without a type":   {cloudEvent(`"datacontenttype":"/json"`), "not a media type"},
		"an attribute twice":              {cloudEvent(`"tenant":"a","tenant":"b"`), "attribute tenant is there twice"},
		"data twice":                      {cloudEvent(`"data":1,"data":2`), "attribute data is there twice"},
		"base64 with line breaks":         {cloudEvent(`"data_base64":"AP8B\nAP8B"`), "data_base64: it has a line break"},
		"a time with a comma":             {cloudEvent(`"time":"2026-01-02T00:00:00,5Z"`), "not RFC 3339"},
		"a time that is none":             {cloudEvent(`"time":"yesterday"`), `time "yesterday" is not RFC 3339`},
		"a time of 61 seconds":            {cloudEvent(`"time":"2026-01-02T03:04:61Z"`), "not RFC 3339"},
		"a time that is only a minute":    {cloudEvent(`"time":"2026-01-02T03:04"`), "not RFC 3339"},
		"a time without a zone":           {cloudEvent(`"time":"2026-01-02T03:04:05"`), "not RFC 3339"},
		"a time that is a number":         {cloudEvent(`"time":1767322800`), "attribute time: 1767322800 is not a string"},
		"an empty subject":                {cloudEvent(`"subject":""`), "subject is empty"},
		"an empty dataschema":             {cloudEvent(`"dataschema":""`), "dataschema is empty"},
		"an empty content type":           {cloudEvent(`"datacontenttype":""`), "datacontenttype is empty"},
		"an attribute in capitals":        {cloudEvent(`"Tenant":"acme"`), `attribute name "Tenant"`},
		"an attribute with an underscore": {cloudEvent(`"ten_ant":"acme"`), `attribute name "ten_ant"`},
		"an attribute without a name":     {cloudEvent(`"":"acme"`), `attribute name ""`},
		"an attribute that is an object":  {cloudEvent(`"tenant":{"id":1}`), "attribute tenant:"},
		"an attribute that is an array":   {cloudEvent(`"tenant":[]`), "attribute tenant:"},
		"a fraction":                      {cloudEvent(`"rank":1.5`), "1.5 is not a 32-bit integer"},
		"an exponent":                     {cloudEvent(`"rank":1e3`), "not a 32-bit integer"},
		"an integer of 33 bits":           {cloudEvent(`"rank":2147483648`), "not a 32-bit integer"},
		"an integer of 33 bits, negative": {cloudEvent(`"rank":-2147483649`), "not a 32-bit integer"},
		"a control character":             {cloudEvent(`"tenant":"a\u0000b"`), "attribute tenant: it has a control character"},
		"a newline in the id":             {strings.Replace(cloudEvent(``), "e-1", `e\r\n1`, 1), "attribute id: it has a control character"},
		"both kinds of data":              {cloudEvent(`"data":1,"data_base64":"AA=="`), "both data and data_base64"},
		"base64 that is none":             {cloudEvent(`"data_base64":"?"`), "data_base64: illegal base64"},
		"base64 that is no text":          {cloudEvent(`"data_base64":1`), "data_base64 is not a string"},
		"data nested 10,001 deep":         {cloudEvent(`"data":` + strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)), "exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bus.ParseCloudEvent([]byte(c.text))
			require.ErrorContains(t, err, c.want)
			require.Less(t, len(err.Error()), 512, "an error is short, whatever the input")
		})
	}
}

func TestFormatCloudEvent(t *testing.T) {
	base := message.Metadata{driver.HeaderSource: "/shop", driver.HeaderType: paidTopic}
	for name, c := range map[string]struct {
		headers message.Metadata
		payload string
		want    string // beside the required attributes
	}{
		"JSON":                            {nil, `{"a": 1}`, `"data":{"a": 1}`},
		"no payload":                      {nil, ``, ``},
		"JSON that is none":               {nil, `{"a":`, `"data_base64":"eyJhIjo="`},
		"JSON with invalid UTF-8 in it":   {nil, "\"\xff\"", `"data_base64":"Iv8i"`},
		"binary":                          {message.Metadata{driver.HeaderContentType: "image/png"}, "\xff\x00", `"datacontenttype":"image/png","data_base64":"/wA="`},
		"text":                            {message.Metadata{driver.HeaderContentType: "text/plain"}, "a\nb", `"datacontenttype":"text/plain","data":"a\nb"`},
		"attributes and the plain ones":   {message.Metadata{driver.HeaderSubject: "o-1", "ce_tenant": "acme", driver.HeaderCorrelationID: "c-1"}, ``, `"subject":"o-1","tenant":"acme","correlationid":"c-1"`},
		"other headers are left out":      {message.Metadata{driver.HeaderInstance: "here", "x-death": "1", "ce_Bad-Name": "x"}, ``, ``},
		"an attribute can't pose as data": {message.Metadata{"ce_data": "x", "ce_specversion": "0.3"}, ``, ``},
	} {
		t.Run(name, func(t *testing.T) {
			msg := &message.Message{UUID: "e-1", Metadata: maps.Clone(base), Payload: []byte(c.payload)}
			maps.Copy(msg.Metadata, c.headers)
			text, err := bus.FormatCloudEvent(msg)
			require.NoError(t, err)
			require.JSONEq(t, cloudEvent(c.want), string(text))
			require.NotContains(t, string(text), "\n", "one line")
		})
	}
	for _, missing := range []string{driver.HeaderSource, driver.HeaderType} {
		headers := maps.Clone(base)
		delete(headers, missing)
		_, err := bus.FormatCloudEvent(&message.Message{UUID: "e-1", Metadata: headers})
		require.ErrorContains(t, err, "message e-1 has no "+missing)
	}
}

// What one writes, the other reads.
func TestFormatCloudEvent_refusesWhatParseCloudEventRefuses(t *testing.T) {
	for want, headers := range map[string]message.Metadata{
		`time "yesterday" is not RFC 3339`:                    {driver.HeaderTime: "yesterday"},
		`source "%zz" is not a URI reference`:                 {driver.HeaderSource: "%zz"},
		"attribute tenant: it has a control character":        {"ce_tenant": "a\nb"},
		"attribute tenant: it is not valid UTF-8":             {"ce_tenant": "\xff"},
		"attribute correlationid: it has a control character": {driver.HeaderCorrelationID: "a\x00b"},
		`dataschema "/relative" is not an absolute URI`:       {driver.HeaderDataSchema: "/relative"},
		`datacontenttype "garbage" is not a media type`:       {driver.HeaderContentType: "garbage"},
		"attribute id is missing or empty":                    {driver.HeaderID: ""},
	} {
		msg := &message.Message{Metadata: message.Metadata{driver.HeaderID: "e-1", driver.HeaderSource: "/shop", driver.HeaderType: paidTopic}}
		maps.Copy(msg.Metadata, headers)
		_, err := bus.FormatCloudEvent(msg)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "bus: format CloudEvent: message ")
	}
	msg := &message.Message{Metadata: message.Metadata{
		driver.HeaderID: "e-1", driver.HeaderSource: "/shop", driver.HeaderType: paidTopic,
		driver.HeaderSubject: "", driver.HeaderDataSchema: "", driver.HeaderTime: "", driver.HeaderContentType: "",
	}}
	text, err := bus.FormatCloudEvent(msg)
	require.NoError(t, err)
	require.JSONEq(t, cloudEvent(``), string(text), "what is empty is not there")
}

func TestFormatCloudEvent_isTheInverseOfParseCloudEvent(t *testing.T) {
	text := cloudEvent(`"flag":true,"off":false,"count":7,"text":"7","yes":"true","null":"null","zero":0,"minus":-0,"data":{"a":[1.50,"<"]}`)
	msg, err := bus.ParseCloudEvent([]byte(text))
	require.NoError(t, err)
	formatted, err := bus.FormatCloudEvent(msg)
	require.NoError(t, err)
	require.JSONEq(t, text, string(formatted))

	msg.Metadata["ce_flag"], msg.Metadata["ce_count"] = "perhaps", "7.5" // changed on the way
	formatted, err = bus.FormatCloudEvent(msg)
	require.NoError(t, err)
	require.Contains(t, string(formatted), `"flag":"perhaps"`)
	require.Contains(t, string(formatted), `"count":"7.5"`)
}

func TestHeader_takesWhatACloudEventCanHave(t *testing.T) {
	for key, value := range map[string]string{
		"": "x", "ce_": "x", "ce_data": "x", "ce_Tenant": "x", "ce_a-b": "x", "CE_ID": "x", "Leat_x": "x", "a\nb": "x", "a b": "x", "\xff": "x",
		"ce_tenant": "a\x00b", "ce_region": "a\nb", "ce_zone": "\xff", "x-tenant": "a\nb", driver.HeaderBaggage: "\xff", driver.HeaderSubject: "", driver.HeaderDataSchema: "a b",
	} {
		_, err := bus.Encoder{}.Encode(t.Context(), orderPaid{}, bus.WithHeader(key, value))
		require.ErrorContains(t, err, "header", "%q: %q", key, value)
	}
	for key, value := range map[string]string{
		"ce_tenant": "größe 7", "ce_empty": "", "x-tenant": "acme", "Größe": "x", driver.HeaderBaggage: "a=b", driver.HeaderDataSchema: "https://shop.example/s#1",
	} {
		msg, err := bus.Encoder{}.Encode(t.Context(), orderPaid{}, bus.WithHeader(key, value))
		require.NoError(t, err)
		require.Equal(t, value, msg.Metadata[key])
		text, err := bus.FormatCloudEvent(msg)
		require.NoError(t, err)
		_, err = bus.ParseCloudEvent(text)
		require.NoError(t, err)
	}
}

func TestFormatCloudEvent_keepsText(t *testing.T) {
	msg, err := bus.ParseCloudEvent([]byte(cloudEvent(`"data":{"html":"<b>&\u2028"}`)))
	require.NoError(t, err)
	text, err := bus.FormatCloudEvent(msg)
	require.NoError(t, err)
	again, err := bus.ParseCloudEvent(text)
	require.NoError(t, err)
	require.Equal(t, string(msg.Payload), string(again.Payload))
}

// FuzzParseCloudEvent: it never panics, and what it has read survives a round trip.
func FuzzParseCloudEvent(f *testing.F) {
	for _, members := range []string{
		``, `"data":{"a": [1, "<"]}`, `"data_base64":"AP8B"`, `"datacontenttype":"text/plain","data":"x"`, `"datacontenttype":"text/xml","data":{"a":1}`,
		`"rank":-5,"sampled":false,"tenant":"\ud800"`, `"time":"2026-01-02T03:04:05Z","subject":"s"`, `"data":null`, `"data_base64":""`, `"data_base64":null`,
	} {
		f.Add([]byte(cloudEvent(members)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		msg, err := bus.ParseCloudEvent(text)
		if err != nil {
			t.Skip()
		}
		require.NotEmpty(t, driver.MessageID(msg))
		formatted, err := bus.FormatCloudEvent(msg)
		require.NoError(t, err)
		again, err := bus.ParseCloudEvent(formatted)
		require.NoError(t, err, "%s", formatted)
		require.Equal(t, msg.Metadata, again.Metadata)
		require.Equal(t, msg.UUID, again.UUID)
		require.Equal(t, compact(msg.Payload), compact(again.Payload))
	})
}

// compact returns JSON without its white space, and anything else as it is.
func compact(payload []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, payload) != nil {
		return string(payload)
	}
	return b.String()
}
