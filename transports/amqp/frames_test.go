package amqp

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// propsFrame returns a frame with a message's properties: a content type, headers of these bytes, and a delivery mode.
func propsFrame(table []byte) []byte {
	payload := make([]byte, propsTable)
	payload[1] = 60
	binary.BigEndian.PutUint16(payload[propsTable-2:], flagType|flagHeaders|0x1000)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(table)))
	return rawFrame(frameProps, slices.Concat(payload, []byte("\x04text"), length, table, []byte{2}))
}

func rawFrame(kind byte, payload []byte) []byte {
	frame := append([]byte{kind, 0, 1}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	return append(append(frame, payload...), 0xCE)
}

func field(kind byte, value ...byte) []byte { return append([]byte{1, 'k', kind}, value...) }

func sized(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }

func nested(depth int) []byte {
	table := field('t', 1)
	for range depth {
		table = field('F', sized(table)...)
	}
	return table
}

func nestedArrays(depth int) []byte {
	array := []byte{'V'}
	for range depth {
		array = append([]byte{'A'}, sized(array)...)
	}
	return append([]byte{1, 'k'}, array...)
}

func TestFrames_tablesThatCanNotBeReadAreReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		table  []byte
		reason string
	}{
		"empty":              {nil, ""},
		"every type":         {bytes.Join([][]byte{field('V'), field('b', 1), field('s', 1, 2), field('I', 1, 2, 3, 4), field('D', 1, 2, 3, 4, 5), field('l', 1, 2, 3, 4, 5, 6, 7, 8), field('S', sized([]byte("x"))...), field('A', sized([]byte{'t', 1, 'V'})...)}, nil), ""},
		"32 deep":            {nested(32), ""},
		"33 deep":            {nested(33), "nested more than 32 deep"},
		"8192 fields":        {bytes.Repeat(field('V'), 8192), ""},
		"8193 fields":        {bytes.Repeat(field('V'), 8193), "more than 8192 fields"},
		"32 arrays deep":     {nestedArrays(32), ""},
		"33 arrays deep":     {nestedArrays(33), "nested more than 32 deep"},
		"8193 in an array":   {field('A', sized(bytes.Repeat([]byte{'V'}, 8193))...), "more than 8192 fields"},
		"cut off":            {field('I', 1), "end within a field"},
		"a size beyond it":   {field('S', 0xff, 0xff, 0xff, 0xff), "end within a field"},
		"an unknown type":    {field('Z'), "unknown type 'Z'"},
		"more than a frame":  {field('S', sized(make([]byte, frameMax))...), "do not fit into a frame of 131072"},
		"all that fits":      {field('S', sized(make([]byte, frameMax-len(propsFrame(field('S', sized(nil)...)))))...), ""},
		"one byte too large": {field('S', sized(make([]byte, 1+frameMax-len(propsFrame(field('S', sized(nil)...)))))...), "do not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			body := rawFrame(3, []byte("body"))
			sent := append(propsFrame(c.table), body...)
			for _, from := range []io.Reader{bytes.NewReader(sent), iotest.OneByteReader(bytes.NewReader(sent)), iotest.DataErrReader(bytes.NewReader(sent))} {
				got, err := io.ReadAll(newFrameReader(readingConn{Reader: from}))
				require.NoError(t, err)
				if c.reason == "" {
					require.Equal(t, sent, got)
					continue
				}
				reason := got[bytes.Index(got, []byte(headerTooBig))+len(headerTooBig):]
				rest := reason[5+binary.BigEndian.Uint32(reason[1:]):]
				require.Equal(t, append([]byte{2, 0xCE}, body...), rest, "the other properties and the body are as they were")
				require.Equal(t, len(got)-len(body), frameHead+int(binary.BigEndian.Uint32(got[3:]))+1)
				require.Contains(t, string(got), c.reason)
				require.Contains(t, string(got), headerTooBig)
				require.Less(t, len(got), 500)
				require.Equal(t, got[:len(got)-len(body)], readable(got[:len(got)-len(body)], frameMax), "this one can be read")
			}
		})
	}
}

type readingConn struct {
	net.Conn
	io.Reader
}

func (c readingConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// Whatever a broker sends, what is passed on is in frames, and each of them can be read.
func FuzzFrames(f *testing.F) {
	f.Add(propsFrame(nested(40)))
	f.Add(rawFrame(1, []byte("method")))
	f.Add([]byte("AMQP\x00\x00\x09\x01"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) < frameHead+1 || len(sent) > 1<<16 {
			return
		}
		got := readable(propsFrame(sent), 4096)
		require.LessOrEqual(t, len(got), 4096)
		require.Equal(t, got, readable(got, 4096))
		whole, err := io.ReadAll(newFrameReader(readingConn{Reader: strings.NewReader(string(sent))}))
		if err == nil && sent[0] != frameProps {
			require.Equal(t, sent, whole)
		}
	})
}
