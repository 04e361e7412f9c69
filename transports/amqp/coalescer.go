package amqp

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// coalesceLimit is how many bytes wait to be written before publishers wait too.
	coalesceLimit = 1 << 20
	// lastWords is how long Close tries to write what is left.
	lastWords = time.Second
)

// coalescer is a connection whose writes are collected and written together by one goroutine, so
// that many small frames cost one system call. Write never blocks, and so neither does an ack or a
// publish of amqp091-go, which hold their locks while they write; whoever may wait asks room first.
type coalescer struct {
	net.Conn
	meter   *meter // nil: none
	mu      sync.Mutex
	more    *sync.Cond
	pending []byte
	spare   []byte
	drained chan struct{} // closed when pending was taken; nil while nobody waits
	err     error
	closing bool
	done    chan struct{}
}

func newCoalescer(conn net.Conn) *coalescer {
	c := &coalescer{Conn: conn, done: make(chan struct{})}
	c.more = sync.NewCond(&c.mu)
	go c.flush()
	return c
}

// Write takes the bytes. Its error is that of an earlier write.
func (c *coalescer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.closing {
		return 0, net.ErrClosed
	}
	if c.meter != nil {
		c.meter.writes(p)
	}
	c.pending = append(c.pending, p...)
	c.more.Signal()
	return len(p), nil
}

// room waits until less than the limit is waiting.
func (c *coalescer) room(ctx context.Context) error {
	for {
		c.mu.Lock()
		if len(c.pending) < coalesceLimit || c.err != nil || c.closing {
			c.mu.Unlock()
			return nil //nolint:nilerr // the connection's error shows at the write
		}
		if c.drained == nil {
			c.drained = make(chan struct{})
		}
		drained := c.drained
		c.mu.Unlock()
		select {
		case <-drained:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *coalescer) flush() {
	defer close(c.done)
	for {
		batch, ok := c.take()
		if !ok {
			return
		}
		_, err := c.Conn.Write(batch)
		c.release(batch, err)
		if err != nil {
			_ = c.Conn.Close() // the reader notices, and the connection ends
			return
		}
	}
}

// take waits for bytes; ok is false at the end.
func (c *coalescer) take() (batch []byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) == 0 && !c.closing {
		c.more.Wait()
	}
	if len(c.pending) == 0 {
		return nil, false
	}
	batch, c.pending, c.spare = c.pending, c.spare[:0], nil
	c.wake()
	return batch, true
}

func (c *coalescer) release(batch []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cap(batch) <= 2*coalesceLimit {
		c.spare = batch
	}
	if err != nil {
		c.err = err
		c.wake()
	}
}

// wake lets those go on who wait for room. The caller holds c.mu.
func (c *coalescer) wake() {
	if c.drained != nil {
		close(c.drained)
		c.drained = nil
	}
}

// Close writes what is left, within a second, and closes the connection.
func (c *coalescer) Close() error {
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		_ = c.SetWriteDeadline(time.Now().Add(lastWords))
		c.more.Signal()
		c.wake()
	}
	c.mu.Unlock()
	<-c.done
	return c.Conn.Close()
}
