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

// stream is a response of server-sent events.
type stream struct {
	w    http.ResponseWriter
	out  *http.ResponseController
	free func()
}

// stream begins a response of server-sent events. The caller calls free.
func (c *console) stream(w http.ResponseWriter) (*stream, error) {
	select {
	case c.streams <- struct{}{}:
	default:
		return nil, &pageError{http.StatusServiceUnavailable, "Too many pages are live. Close some of them."}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	s := &stream{w, http.NewResponseController(w), func() { <-c.streams }}
	return s, nil
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
func (c *console) live(w http.ResponseWriter, r *http.Request) error {
	s, err := c.stream(w)
	if err != nil {
		return err
	}
	defer s.free()
	ticker := time.NewTicker(liveEvery)
	defer ticker.Stop()
	for last := ""; ; {
		part, err := c.livePart(r)
		if err != nil {
			if known, ok := errors.AsType[*pageError](err); ok && last == "" {
				return known
			}
			err = s.send("trouble", admin.Printable(err.Error()))
		} else if part != last {
			err = s.send("part", part)
		} else {
			err = s.send("same", "")
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

func (c *console) livePart(r *http.Request) (string, error) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	var b strings.Builder
	if r.FormValue("group") != "" {
		g, err := c.groupNow(r)
		if err != nil {
			return "", err
		}
		err = c.templates["group"].ExecuteTemplate(&b, "live-group", g)
		return b.String(), err
	}
	page, err := c.overviewPage(r)
	if err != nil {
		return "", err
	}
	err = c.templates["overview"].ExecuteTemplate(&b, "live-overview", page)
	return b.String(), err
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

// patternOf returns the pattern that a request asks for.
func patternOf(r *http.Request) (string, error) {
	pattern := strings.TrimSpace(r.FormValue("pattern"))
	pattern = cmp.Or(pattern, ">")
	if err := driver.ValidatePattern(pattern); err != nil {
		return "", &pageError{http.StatusBadRequest, err.Error()}
	}
	return pattern, nil
}

// tail shows the page of the live tail. Without JavaScript it listens for some seconds and shows what came.
func (c *console) tail(w http.ResponseWriter, r *http.Request) error {
	pattern, err := patternOf(r)
	if err != nil {
		return err
	}
	page := tailPage{Pattern: pattern, Listened: r.FormValue("listen") != ""}
	inspector, err := c.inspector()
	if err != nil {
		return err
	}
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
			return err
		}
	}
	return c.render(w, r, http.StatusOK, "tail", "tail", "Live tail", page)
}

// tailStream sends copies of what is published, a bounded number a second, and how many were left out.
func (c *console) tailStream(w http.ResponseWriter, r *http.Request) error {
	pattern, err := patternOf(r)
	if err != nil {
		return err
	}
	inspector, err := c.inspector()
	if err != nil {
		return err
	}
	s, err := c.stream(w)
	if err != nil {
		return err
	}
	defer s.free()
	if err := s.send("left-out", "0"); err != nil { // so that the browser sees the connection
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
	return c.sendTail(ctx, s, messages, &leftOut, ended)
}

func (c *console) sendTail(ctx context.Context, s *stream, messages <-chan tailed, leftOut *atomic.Int64, ended chan error) error {
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
			var b strings.Builder
			if err = c.templates["tail"].ExecuteTemplate(&b, "tailed", m); err == nil {
				err = s.send("message", b.String())
			}
		case <-second.C:
			sent = 0
			err = s.send("left-out", fmt.Sprint(leftOut.Swap(0))) // also shows that the connection stands
		case err = <-ended:
			ended <- err
			if ctx.Err() == nil && err != nil {
				_ = s.send("trouble", admin.Printable(err.Error()))
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
