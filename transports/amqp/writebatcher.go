package amqp

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// coalesceLimit is the number of pending bytes at which publishers wait.
	coalesceLimit = 1 << 20
	// coalesceChunk is how many bytes are written at once. Pending bytes are kept in chunks of that size, because one slice that
	// grows with a large message would take several times its size.
	coalesceChunk = 64 << 10
	// lastWords is how long Close waits for the pending bytes to be written.
	lastWords = time.Second
)

// A writeBatcher is a connection whose writes are collected and written by one goroutine, so that many small frames cost one
// system call. Write never blocks, so acks and publishings of amqp091-go, which write with locks held, don't either. Callers
// that may wait call room first. chunk and wake are called with mu locked.
type writeBatcher struct {
	net.Conn
	meter   *meter // nil: none
	mu      sync.Mutex
	more    *sync.Cond
	pending [][]byte      // chunks, of which the last may have room
	waiting int           // bytes in them
	spare   [][]byte      // empty chunks
	drained chan struct{} // closed when pending is written; nil if no call waits
	err     error
	closing bool
	done    chan struct{}
}

func newWriteBatcher(conn net.Conn) *writeBatcher {
	c := &writeBatcher{Conn: conn, done: make(chan struct{})}
	c.more = sync.NewCond(&c.mu)
	go c.flush()
	return c
}

// Write appends p to the pending bytes. Its error is that of an earlier write.
func (c *writeBatcher) Write(p []byte) (int, error) {
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
	for rest := p; len(rest) > 0; {
		last := len(c.pending) - 1
		if last < 0 || len(c.pending[last]) == cap(c.pending[last]) {
			c.pending = append(c.pending, c.chunk())
			last++
		}
		to := c.pending[last]
		n := min(len(rest), cap(to)-len(to))
		c.pending[last] = append(to, rest[:n]...)
		rest = rest[n:]
	}
	c.waiting += len(p)
	c.more.Signal()
	return len(p), nil
}

// chunk returns an empty chunk.
func (c *writeBatcher) chunk() []byte {
	if n := len(c.spare); n > 0 {
		chunk := c.spare[n-1]
		c.spare = c.spare[:n-1]
		return chunk
	}
	return make([]byte, 0, coalesceChunk)
}

// room blocks until there are fewer pending bytes than the limit.
func (c *writeBatcher) room(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.waiting < coalesceLimit || c.err != nil || c.closing {
			c.mu.Unlock()
			return nil //nolint:nilerr // Write returns the connection's error
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

func (c *writeBatcher) flush() {
	defer close(c.done)
	for {
		batch, ok := c.take()
		if !ok {
			return
		}
		var err error
		for _, chunk := range batch {
			if err == nil {
				_, err = c.Conn.Write(chunk)
			}
			c.release(chunk, err)
		}
		if err != nil {
			_ = c.Conn.Close() // the reader gets an error, which ends the connection
			return
		}
	}
}

// take blocks until there are pending bytes and returns them; ok is false at the end.
func (c *writeBatcher) take() (batch [][]byte, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) == 0 && !c.closing {
		c.more.Wait()
	}
	if len(c.pending) == 0 {
		return nil, false
	}
	batch, c.pending, c.waiting = c.pending, nil, 0
	c.wake()
	return batch, true
}

func (c *writeBatcher) release(chunk []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spare) < coalesceLimit/coalesceChunk {
		c.spare = append(c.spare, chunk[:0])
	}
	if err != nil {
		c.err = err
		c.wake()
	}
}

// wake wakes the calls that wait for room.
func (c *writeBatcher) wake() {
	if c.drained != nil {
		close(c.drained)
		c.drained = nil
	}
}

// Close writes the pending bytes, for at most a second, and closes the connection.
func (c *writeBatcher) Close() error {
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
