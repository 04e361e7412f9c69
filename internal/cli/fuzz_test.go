package cli

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func FuzzFilter(f *testing.F) {
	f.Add("order.>", "order.paid.v1", 1, "*smtp.Error", "454", "2h", "2006-01-02", "k", "7")
	f.Add("", "", 0, "", "", "", "", "", "")
	f.Add("*.*", "order", -1, "**", "\xff", "-1ns ago", "2006-01-02T15:04:05.999999999Z", "\x00", "é")
	f.Fuzz(func(t *testing.T, topic, typ string, version int, class, text, since, until, key, id string) {
		flags := filter{Topic: topic, Type: typ, Version: version, Class: class, Text: text, Since: since, Until: until, Key: key, ID: []string{id}}
		matching, err := flags.filter(time.Now())
		if err != nil {
			var usage *UsageError
			require.ErrorAs(t, err, &usage)
			return
		}
		msg := message.NewMessage(id, []byte(text))
		msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: typ, driver.HeaderPartitionKey: key, driver.HeaderFaultTopic: topic}
		m := driver.PoisonedMessage{ID: id, Message: msg, Fault: driver.Fault{Class: class, Text: text}}
		if matching.Match(m) {
			m.ID, msg.Metadata[driver.HeaderID] = id+"x", id+"x"
			require.False(t, matching.Match(m), "another id")
		}
	})
}
