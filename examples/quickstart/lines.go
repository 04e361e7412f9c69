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
	// maxLine is the maximum length of a line, in bytes.
	maxLine = 64 << 20
	// readBuffer has room for hundreds of usual lines. Longer lines are assembled in another buffer.
	readBuffer = 256 << 10
)

// byteOrderMark is written by some editors at the beginning of a file. It is not a part of the first event.
const byteOrderMark = "\ufeff"

// A line has a message, or the reason why a line is not a valid one. It is not blank.
type line struct {
	number  int
	message *message.Message
	err     error
}

// lines reads an input line by line, with one line in memory at a time.
type lines struct {
	from   *bufio.Reader
	number int    // of the last line
	long   []byte // buffer for a long line

	read chan line
	err  error // why reading ended before the end of the input; set before read is closed
}

// readLines starts reading, until the input ends or ctx is done.
func readLines(ctx context.Context, from io.Reader) *lines {
	l := &lines{from: bufio.NewReaderSize(from, readBuffer), read: make(chan line)}
	go l.readAll(ctx)
	return l
}

// all iterates over the lines that are not blank. It ends when ctx is done even if a read blocks, as on a terminal;
// the read then continues in the background. The error is the input's.
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

// next returns the text of the next line, which is valid until the next call. For a line that does not fit, it
// returns the beginning. The last line may be returned with io.EOF.
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

// parse returns the message of a line, or the error if it is not an event that can be published.
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
