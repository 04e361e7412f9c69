package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/transports/memory"
)

// FuzzRecord decodes a line of an export file. A message must be unchanged after it is encoded as a record.
func FuzzRecord(f *testing.F) {
	for _, line := range []string{
		`{}`, `{"id":"1","topic":"order.paid.v1","headers":{"ce_id":"1"},"data":"{}"}`,
		`{"headers":{"a":"b"},"headers_base64":{"c":"/w=="},"data_base64":"/w=="}`,
		`{"headers":{"leat_fault_attempts":"-1","leat_fault_at":"x","leat_fault_failures":"99999999999999999999"}}`,
		`{"headers":{"ce_type":"order.v10000"},"attempts":-1}`, `{"headers":null}`, `[]`,
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var record admin.Record
		if json.Unmarshal([]byte(line), &record) != nil {
			return
		}
		m, err := record.Message()
		if err != nil {
			return
		}
		text, err := json.Marshal(admin.Full("shop.mail", m))
		require.NoError(t, err)
		record = admin.Record{}
		require.NoError(t, json.Unmarshal(text, &record))
		again, err := record.Message()
		require.NoError(t, err)
		require.Equal(t, string(m.Message.Payload), string(again.Message.Payload))
		require.Equal(t, m.Message.UUID, again.Message.UUID)
		for name, value := range m.Message.Metadata {
			require.Equal(t, value, again.Message.Metadata[name])
		}
	})
}

// FuzzAdmin posts bodies to the endpoint. None may cause an internal error.
func FuzzAdmin(f *testing.F) {
	for _, body := range []string{
		``, `{`, `[]`, `null`, `{"records":[]}`, `{"records":null}`, `{"records":[{"headers":{"a":"b"}}]}`, `{"ids":["1","x"]}`, `{"ids":[null]}`, `{"ids":[]} x`,
		`{"topic":"order.paid.v1","headers":{"ce_id":"1"},"data":"{}"}`, `{"topic":"\n","headers":{"a":"b"}}`, strings.Repeat(`[`, 20_000),
	} {
		for path := range uint8(4) {
			f.Add(path, body)
		}
	}
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		transport := memory.New(memory.Config{})
		b, err := bus.New(transport, bus.Config{Service: "shop", Logger: quiet()})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(context.Background())) }()
		feed, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "shop.mail", Topics: []string{"order.>"}, Concurrency: 1})
		require.NoError(t, err)
		defer func() { require.NoError(t, feed.Close(context.Background())) }()
		msg := message.NewMessage("1", nil)
		msg.Metadata = message.Metadata{driver.HeaderID: "1", driver.HeaderFaultTopic: "order.paid.v1"}
		require.NoError(t, transport.PoisonQueue("shop.mail").Put(t.Context(), driver.PoisonedMessage{Message: msg}))

		paths := []string{"/publish", "/poison/shop.mail/put", "/poison/shop.mail/rm", "/poison/shop.mail/replay"}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1"+paths[int(path)%len(paths)], strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		admin.Endpoint{Bus: b}.Handler().ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError { // other transports take topics that this one refuses
			require.Contains(t, w.Body.String(), `{"error":"memory: poisoned message`)
		}
		answered, err := io.ReadAll(w.Body)
		require.NoError(t, err)
		require.True(t, json.Valid(answered), "%s", answered)
		if w.Code == http.StatusOK {
			require.True(t, json.Valid([]byte(body)), "it has acted on a body that is no JSON")
		}
	})
}
