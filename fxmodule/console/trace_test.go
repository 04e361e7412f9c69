package console_test

import (
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/transports/memory"
)

func TestMessage_linksToItsTrace(t *testing.T) {
	s := newShop(t, "memory://", false)
	msg := message.NewMessage("m-1", []byte(`{"order":"o-1"}`))
	const id = "0af7651916cd43dd8448eb211c80319c"
	msg.Metadata.Set(driver.HeaderTraceParent, "00-"+id+"-b7ad6b7169203331-01")
	require.NoError(t, s.Transport().Publish(t.Context(), "order.paid.v2", msg))
	s.awaitPoisoned(t, 1)
	place := "message?" + query("group", group, "id", s.first(t))
	require.Contains(t, s.get(t, place).text, "Trace "+id)
	require.NotContains(t, s.get(t, place).body, id+`"`, "there is no viewer")

	server := httptest.NewServer(console.New(console.Config{
		Bus: s.Bus, Stack: s.stack, Logger: slog.New(slog.DiscardHandler), TraceURL: "https://jaeger.example/trace/{trace_id}?uiFind=shop",
	}))
	defer server.Close()
	s.url = server.URL + "/"
	require.Contains(t, s.get(t, place).body, `<a href="https://jaeger.example/trace/`+id+`?uiFind=shop" rel="noreferrer">`+id+`</a>`)
}

func TestTraceURL_isAnAddressOfATrace(t *testing.T) {
	require.NoError(t, console.CheckTraceURL(""))
	require.NoError(t, console.CheckTraceURL("http://localhost:16686/trace/{trace_id}"))
	transport := memory.New(memory.Config{})
	defer func() { require.NoError(t, transport.Close(t.Context())) }()
	for _, wrong := range []string{"javascript:alert({trace_id})", "https://jaeger.example/trace/", "/trace/{trace_id}", "https:///{trace_id}", "http://a b/{trace_id}"} {
		require.ErrorContains(t, console.CheckTraceURL(wrong), "write it like https://jaeger.example/trace/{trace_id}", wrong)
		require.Panics(t, func() { console.New(console.Config{Transport: transport, TraceURL: wrong}) }, wrong)
	}
}
