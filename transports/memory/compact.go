package memory

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// maxShared bounds the texts that the messages of a poison queue share, in bytes. Further texts are written into each record.
const maxShared = 256 << 10

// records encodes the messages of one poison queue compactly, because the queue may become long and is rarely read. A record has
// each text with its length in front, and the payload last. Texts that many messages share, such as the names of headers and the
// stack of a panic, are stored once. The zero value is ready to use. The group's mutex guards it.
type records struct {
	numbers map[string]uint64 // the number of each shared text
	texts   []string          // the shared texts by number
	bytes   int               // their total size
}

func (p *records) encode(uuid, topic string, headers message.Metadata, payload []byte) []byte {
	var data []byte
	data = appendText(data, uuid)
	data = p.appendShared(data, topic)
	data = binary.AppendUvarint(data, uint64(len(headers)))
	for key, value := range headers {
		data = p.appendShared(data, key)
		if recurs(key) {
			data = p.appendShared(data, value)
		} else {
			data = appendText(data, value)
		}
	}
	return slices.Clip(append(data, payload...))
}

// recurs reports whether a header has the same value in many poisoned messages of a group.
func recurs(key string) bool {
	switch key {
	case driver.HeaderInstance, driver.HeaderFaultClass, driver.HeaderFaultStack, driver.HeaderFaultGroup, driver.HeaderFaultHandler,
		driver.HeaderFaultTopic, driver.HeaderFaultHost, driver.HeaderFaultPID, driver.HeaderFaultBuild:
		return true
	default:
		return false
	}
}

// A text is encoded as twice its length followed by the text, or as twice its number plus one if it is shared.

func appendText(data []byte, text string) []byte {
	data = binary.AppendUvarint(data, uint64(len(text))<<1)
	return append(data, text...)
}

func (p *records) appendShared(data []byte, text string) []byte {
	n, known := p.numbers[text]
	switch {
	case known:
	case p.bytes+len(text)+recordOverhead > maxShared:
		return appendText(data, text)
	default:
		n = p.share(strings.Clone(text))
	}
	return binary.AppendUvarint(data, n<<1|1)
}

func (p *records) share(text string) uint64 {
	if p.numbers == nil {
		p.numbers = make(map[string]uint64)
	}
	n := uint64(len(p.texts))
	p.numbers[text] = n
	p.texts = append(p.texts, text)
	p.bytes += len(text) + recordOverhead
	return n
}

// decode decodes what encode has written.
func (p *records) decode(data []byte) (topic string, msg *message.Message) {
	number := func() uint64 {
		n, width := binary.Uvarint(data)
		data = data[width:]
		return n
	}
	next := func() string {
		n := number()
		if n&1 == 1 {
			return p.texts[n>>1]
		}
		text := string(data[:n>>1])
		data = data[n>>1:]
		return text
	}
	msg = &message.Message{UUID: next()}
	topic = next()
	count := number()
	msg.Metadata = make(message.Metadata, count)
	for range count {
		key := next()
		msg.Metadata[key] = next()
	}
	msg.Payload = bytes.Clone(data)
	return topic, msg
}
