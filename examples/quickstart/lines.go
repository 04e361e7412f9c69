package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

const (
	// maxLine is the longest line that is taken, in bytes.
	maxLine = 64 << 20
	// readBuffer holds hundreds of lines of the usual length; longer ones are put together.
	readBuffer = 256 << 10
)

// byteOrderMark is what some editors begin a file with. It belongs to the file, not to its first event.
const byteOrderMark = "\ufeff"

// line is one that is not blank: a message, or the reason why it is none.
type line struct {
	number  int
	message *message.Message
	err     error
}

// lines reads an input line by line, and never holds more of it than that.
type lines struct {
	from   *bufio.Reader
	number int    // of the line that was read last
	long   []byte // what a long line is put together in

	read chan line
	err  error // why the lines end before the input does; set before read is closed
}

// readLines begins to read, and goes on until the input ends or ctx is done.
func readLines(ctx context.Context, from io.Reader) *lines {
	l := &lines{from: bufio.NewReaderSize(from, readBuffer), read: make(chan line)}
	go l.readAll(ctx)
	return l
}

// all is every line that is not blank. It ends when ctx is done even where a read blocks, as on a terminal;
// that read is left behind. The error is the input's.
func (l *lines) all(ctx context.Context) iter.Seq2[line, error] {
	return func(yield func(line, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case next, more := <-l.read:
				switch {
				case !more && l.err != nil:
					yield(line{}, l.err)
					return
				case !more, !yield(next, nil):
					return
				}
			}
		}
	}
}

func (l *lines) readAll(ctx context.Context) {
	defer close(l.read)
	for {
		text, fits, err := l.next()
		if l.number == 1 {
			text = bytes.TrimPrefix(text, []byte(byteOrderMark))
		}
		text = bytes.TrimSpace(text)
		if len(text) > 0 {
			select {
			case l.read <- parse(l.number, text, fits):
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				l.err = fmt.Errorf("read line %d: %w", l.number, err)
			}
			return
		}
	}
}

// next is the text of the next line, good until the call after this one. Of a line that does not fit, it
// is the beginning. The last line may come together with the end.
func (l *lines) next() (text []byte, fits bool, err error) {
	l.number++
	text, err = l.from.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return text, true, err
	}
	fits, l.long = true, l.long[:0]
	for {
		if fits = fits && len(l.long)+len(text) <= maxLine; fits {
			l.long = append(l.long, text...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		text, err = l.from.ReadSlice('\n')
	}
	text, l.long = l.long, nil
	return text, fits, err
}

// parse makes a message of a line that is an event and can be published.
func parse(number int, text []byte, fits bool) line {
	l := line{number: number}
	if !fits {
		l.err = fmt.Errorf("the line is longer than %d MiB", maxLine>>20)
		return l
	}
	if l.message, l.err = bus.ParseCloudEvent(text); l.err == nil {
		if err := driver.ValidateTopic(driver.TopicOf(l.message)); err != nil {
			l.err = fmt.Errorf("attribute type: %w", err)
		}
	}
	return l
}
