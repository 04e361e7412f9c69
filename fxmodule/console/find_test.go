package console_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestFind_searchesAllGroupsByAnyNameOfAMessage(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		require.Contains(t, s.get(t, "find").text, "No message is poisoned.")
		s.poison(t, OrderPaid{Order: "o-1", Note: "gift"}, OrderPaid{Order: "o-2"})
		msg := message.NewMessage("m-3", []byte(`{"order":"o-3"}`))
		msg.Metadata.Set(driver.HeaderTraceParent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		require.NoError(t, s.Transport().Publish(t.Context(), "order.paid.v2", msg))
		s.awaitPoisoned(t, 3)
		s.poison(t, OrderPaid{Order: "o-4"})

		s.awaitText(t, "find", "4 messages")
		page := s.get(t, "find")
		require.Contains(t, page.text, group+" card declined 4 order.paid.v2")
		require.Contains(t, page.body, `href="group?class=card&#43;declined&amp;group=`+group+`#messages"`)
		for find, want := range map[string]string{
			"GIFT": "order o-1:", "o-2": "order o-2:", "m-3": "order o-3:", "0af7651916cd43dd8448eb211c80319c": "order o-3:",
		} {
			page := s.get(t, "find?"+query("find", find)).text
			require.Contains(t, page, " 1 message ", find)
			require.Contains(t, page, want, find)
		}
		require.Contains(t, s.get(t, "find?find=nothing").text, "No poisoned message has it.")
	})
}
