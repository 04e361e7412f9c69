package amqp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
)

// A frame of AMQP 0-9-1 is a header of seven bytes (type, channel, size of the payload), the payload and an end byte.
const (
	frameHead    = 7
	frameMethod  = 1
	frameProps   = 2                 // the type of a frame with a message's size and properties
	propsTable   = 2 + 2 + 8 + 2     // where the properties begin in such a frame: class, weight, size, flags
	flagType     = 0x8000            // content-type comes first,
	flagEncoding = 0x4000            // then content-encoding,
	flagHeaders  = 0x2000            // then the headers
	mostProps    = 4 * frameMax      // of a frame that is examined
	readAhead    = 32 << 10          // bytes
	mostDepth    = 32                // of tables in each other that amqp091-go reads
	mostFields   = 8192              // of one table or array that it reads
	mostReason   = 200               // bytes
	mostMethod   = 4 << 10           // bytes of a method that is examined
	headerTooBig = "leat-unreadable" // the reason why a message's headers are lost
)

// A frameReader is a connection that replaces headers which its reader could not read. amqp091-go closes a connection if a header
// table is nested too deep, has too many fields or is in a frame that is too large. The broker would redeliver such a message
// over the next connection, and no group would make progress. In such a frame the table is replaced by one with the
// header headerTooBig, which has the reason.
type frameReader struct {
	net.Conn
	in   *bufio.Reader
	left int          // bytes of a frame that is passed on unchanged
	out  []byte       // of a frame that was examined
	most atomic.Int64 // bytes of the largest frame that was negotiated

	meter *meter
}

func newFrameReader(conn net.Conn) *frameReader {
	r := &frameReader{Conn: conn, in: bufio.NewReaderSize(conn, readAhead), meter: newMeter()}
	r.most.Store(frameMax)
	return r
}

// Read blocks until there is at least one byte.
func (r *frameReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		wanted := frameHead
		if r.left > 0 {
			wanted = 1
		}
		switch {
		case len(r.out) > 0:
			copied := copy(p[n:], r.out)
			r.out = r.out[copied:]
			n += copied
		case n > 0 && r.in.Buffered() < wanted:
			return n, nil // more would block
		case r.left > 0:
			read, err := r.in.Read(p[n:min(len(p), n+r.left)])
			r.left -= read
			n += read
			if err != nil {
				return n, err
			}
		default:
			if err := r.next(n > 0); err != nil || len(r.out) == 0 && r.left == 0 {
				return n, err
			}
		}
	}
	return n, nil
}

// Close also ends a call of Read that waits.
func (r *frameReader) Close() error {
	r.meter.close()
	return r.Conn.Close()
}

// peek returns the next n bytes. If the connection ends within them, the error is io.ErrUnexpectedEOF.
func (r *frameReader) peek(n int) ([]byte, error) {
	next, err := r.in.Peek(n)
	if len(next) > 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return next, err
}

// next begins a frame. If soon is true, it does nothing instead of blocking.
func (r *frameReader) next(soon bool) error {
	head, err := r.peek(frameHead)
	if err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint32(head[3:]))
	whole := frameHead + size + 1
	channel := binary.BigEndian.Uint16(head[1:])
	switch {
	case head[0] == frameMethod && size <= mostMethod:
		if soon && r.in.Buffered() < whole {
			return nil
		}
		method, err := r.peek(whole)
		if err != nil {
			return err
		}
		r.meter.reads(channel, method[frameHead:whole-1])
		r.left = whole
		return nil
	case head[0] != frameProps || size > mostProps:
		r.left = whole
		return nil
	case soon && r.in.Buffered() < whole:
		return nil
	}
	if b := r.meter.due(channel); b != nil {
		if soon && b.full() {
			return nil // first return what was read
		}
		b.wait(r.meter.closed)
	}
	frame := make([]byte, whole)
	if _, err := io.ReadFull(r.in, frame); err != nil {
		return err
	}
	if size >= propsTable {
		r.meter.message(channel, int(min(binary.BigEndian.Uint64(frame[frameHead+4:]), 1<<40)))
	}
	r.out = readable(frame, int(r.most.Load()))
	return nil
}

// readable returns the frame. Headers that can't be read are replaced.
func readable(frame []byte, most int) []byte {
	payload := frame[frameHead : len(frame)-1]
	if len(payload) < propsTable {
		return frame
	}
	flags := binary.BigEndian.Uint16(payload[propsTable-2:])
	begin := propsTable
	for _, flag := range []uint16{flagType, flagEncoding} {
		if flags&flag != 0 {
			if begin >= len(payload) {
				return frame
			}
			begin += 1 + int(payload[begin])
		}
	}
	if flags&flagHeaders == 0 || begin+4 > len(payload) {
		return frame
	}
	end := min(begin+4+int(binary.BigEndian.Uint32(payload[begin:])), len(payload))
	var reason string
	table := &fields{rest: payload[begin:end]}
	switch table.table(0); {
	case table.err != nil:
		reason = table.err.Error()
	case len(frame) > most:
		reason = fmt.Sprintf("they have %d bytes; with what the broker adds, they do not fit into a frame of %d", end-begin, most)
	default:
		return frame
	}
	reason = reason[:min(len(reason), mostReason)]
	short := make([]byte, 0, len(frame)-(end-begin)+len(headerTooBig)+len(reason)+10)
	short = append(short, frame[:frameHead+begin]...)
	short = binary.BigEndian.AppendUint32(short, uint32(1+len(headerTooBig)+1+4+len(reason))) //nolint:gosec // bounded
	short = append(append(short, byte(len(headerTooBig))), headerTooBig...)
	short = binary.BigEndian.AppendUint32(append(short, 'S'), uint32(len(reason))) //nolint:gosec // bounded
	short = append(append(short, reason...), frame[frameHead+end:]...)
	binary.BigEndian.PutUint32(short[3:], uint32(len(short)-frameHead-1)) //nolint:gosec // bounded
	return short
}

// fields checks a header table as amqp091-go reads it.
type fields struct {
	rest []byte
	err  error
}

var errFieldEnds = errors.New("they end within a field")

func (f *fields) skip(n int) []byte {
	if f.err == nil && (n < 0 || n > len(f.rest)) {
		f.err = errFieldEnds
	}
	if f.err != nil {
		return nil
	}
	skipped := f.rest[:n]
	f.rest = f.rest[n:]
	return skipped
}

func (f *fields) size() int {
	if n := f.skip(4); n != nil {
		return int(binary.BigEndian.Uint32(n))
	}
	return 0
}

// within reads a table or an array, which has its size before it, field by field.
func (f *fields) within(depth int, field func(*fields)) {
	in := &fields{rest: f.skip(f.size())}
	if f.err == nil && depth > mostDepth {
		in.err = fmt.Errorf("they are nested more than %d deep", mostDepth)
	}
	for n := 0; f.err == nil && in.err == nil && len(in.rest) > 0; n++ {
		if n == mostFields {
			in.err = fmt.Errorf("they have more than %d fields", mostFields)
			break
		}
		field(in)
	}
	if f.err == nil {
		f.err = in.err
	}
}

func (f *fields) table(depth int) {
	f.within(depth, func(in *fields) {
		if length := in.skip(1); length != nil {
			in.skip(int(length[0]))
		}
		in.value(depth)
	})
}

func (f *fields) value(depth int) {
	kind := f.skip(1)
	if kind == nil {
		return
	}
	switch kind[0] {
	case 'V':
	case 't', 'b', 'B':
		f.skip(1)
	case 's', 'u':
		f.skip(2)
	case 'I', 'i', 'f':
		f.skip(4)
	case 'D':
		f.skip(5)
	case 'l', 'd', 'T':
		f.skip(8)
	case 'S', 'x':
		f.skip(f.size())
	case 'A':
		f.within(depth+1, func(in *fields) { in.value(depth + 1) })
	case 'F':
		f.table(depth + 1)
	default:
		f.err = fmt.Errorf("they have a field of the unknown type %q", kind[0])
	}
}
