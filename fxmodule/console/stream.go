package console

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Limits of streams.
const (
	maxStreams   = 32 // at once
	liveEvery    = 3 * time.Second
	writeTimeout = 10 * time.Second // of one event to a browser that has stopped reading
	maxTail      = 20               // messages a second that a tail shows
	tailBuffer   = 256
	maxTailText  = 300 // letters of a payload
	listenFor    = 5 * time.Second
	maxListened  = 50
)

// streams serves the live parts of pages.
type streams struct {
	system    system
	groups    groupPages
	templates templates
	slots     chan struct{} // has an element for each stream that is open
}

// stream is a response of server-sent events.
type stream struct {
	w    http.ResponseWriter
	out  *http.ResponseController
	free func()
}

// open begins a response of server-sent events. The caller calls free.
func (s streams) open(w http.ResponseWriter) (*stream, error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, &pageError{http.StatusServiceUnavailable, "Too many pages are live. Close some of them."}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	return &stream{w, http.NewResponseController(w), func() { <-s.slots }}, nil
}

// send writes an event. An error means that the browser has gone.
func (s *stream) send(name, data string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\n", name)
	data = strings.ReplaceAll(data, "\r", "\n") // which would end a line, too
	for line := range strings.SplitSeq(data, "\n") {
		fmt.Fprintf(&b, "data: %s\n", line)
	}
	b.WriteByte('\n')
	_ = s.out.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
	if _, err := b.WriteTo(s.w); err != nil {
		return err
	}
	return s.out.Flush()
}

// live sends the live part of a page whenever it has changed.
func (s streams) live(w http.ResponseWriter, r *http.Request) error {
	out, err := s.open(w)
	if err != nil {
		return err
	}
	defer out.free()
	ticker := time.NewTicker(liveEvery)
	defer ticker.Stop()
	for last := ""; ; {
		part, err := s.livePart(r)
		if err != nil {
			if known, ok := errors.AsType[*pageError](err); ok && last == "" {
				return known
			}
			err = out.send("trouble", admin.Printable(err.Error()))
		} else if part != last {
			err = out.send("part", part)
		} else {
			err = out.send("same", "")
		}
		if err != nil { // the browser has gone
			return nil
		}
		last = part
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return nil
		}
	}
}

func (s streams) livePart(r *http.Request) (string, error) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	if r.FormValue("group") != "" {
		g, err := s.groups.groupOf(r)
		if err != nil {
			return "", err
		}
		return s.templates.execute("group", "live-group", g)
	}
	page, err := s.groups.overviewPage(r)
	if err != nil {
		return "", err
	}
	return s.templates.execute("overview", "live-overview", page)
}

// tailed is a message that a tail shows.
type tailed struct {
	At                         time.Time
	Topic, ID, Key, Text, Size string
}

func newTailed(topic string, msg *message.Message) tailed {
	text := []rune(admin.Printable(string(msg.Payload[:min(len(msg.Payload), 4*maxTailText)])))
	if len(text) > maxTailText {
		text = append(text[:maxTailText], '…')
	}
	return tailed{
		At: time.Now(), Topic: admin.Printable(topic), ID: admin.Printable(driver.MessageID(msg)), Key: admin.Printable(driver.PartitionKey(msg)),
		Text: string(text), Size: plural(len(msg.Payload), "byte", "bytes"),
	}
}

// tailPage is the messages that came while the request listened.
type tailPage struct {
	Pattern  string
	Listened bool
	Messages []tailed
}

// tailOf returns the pattern that a request asks for, and what shows the messages.
func (s streams) tailOf(r *http.Request) (pattern string, inspector driver.Inspector, err error) {
	pattern = cmp.Or(strings.TrimSpace(r.FormValue("pattern")), ">")
	if err := driver.ValidatePattern(pattern); err != nil {
		return "", nil, &pageError{http.StatusBadRequest, err.Error()}
	}
	inspector, err = s.system.inspector()
	return pattern, inspector, err
}

// tail shows the page of the live tail. Without JavaScript it listens for some seconds and shows what came.
func (s streams) tail(r *http.Request) (view, error) {
	pattern, inspector, err := s.tailOf(r)
	if err != nil {
		return view{}, err
	}
	page := tailPage{Pattern: pattern, Listened: r.FormValue("listen") != ""}
	if page.Listened {
		ctx, cancel := context.WithTimeout(r.Context(), listenFor)
		defer cancel()
		err = inspector.Tail(ctx, pattern, func(topic string, msg *message.Message) error {
			if page.Messages = append(page.Messages, newTailed(topic, msg)); len(page.Messages) == maxListened {
				return errEnough
			}
			return nil
		})
		if err != nil && ctx.Err() == nil && !errors.Is(err, errEnough) {
			return view{}, err
		}
	}
	return view{"tail", "tail", "Live tail", page}, nil
}

// tailStream sends copies of what is published, a bounded number a second, and how many were left out.
func (s streams) tailStream(w http.ResponseWriter, r *http.Request) error {
	pattern, inspector, err := s.tailOf(r)
	if err != nil {
		return err
	}
	out, err := s.open(w)
	if err != nil {
		return err
	}
	defer out.free()
	if err := out.send("left-out", "0"); err != nil { // so that the browser sees the connection
		return nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	messages, ended := make(chan tailed, tailBuffer), make(chan error, 1)
	var leftOut atomic.Int64
	go func() {
		ended <- inspector.Tail(ctx, pattern, func(topic string, msg *message.Message) error {
			select {
			case messages <- newTailed(topic, msg):
			default:
				leftOut.Add(1)
			}
			return nil
		})
	}()
	defer func() {
		cancel()
		<-ended //nolint:errcheck // it ends with the stream
	}()
	return s.sendTail(ctx, out, messages, &leftOut, ended)
}

func (s streams) sendTail(ctx context.Context, out *stream, messages <-chan tailed, leftOut *atomic.Int64, ended chan error) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	sent := 0
	for {
		var err error
		select {
		case m := <-messages:
			if sent++; sent > maxTail {
				leftOut.Add(1)
				continue
			}
			var row string
			if row, err = s.templates.execute("tail", "tailed", m); err == nil {
				err = out.send("message", row)
			}
		case <-second.C:
			sent = 0
			err = out.send("left-out", fmt.Sprint(leftOut.Swap(0))) // also shows that the connection stands
		case err = <-ended:
			ended <- err
			if ctx.Err() == nil && err != nil {
				_ = out.send("trouble", admin.Printable(err.Error()))
			}
			return nil
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return nil
		}
	}
}
