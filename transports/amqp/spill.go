package amqp

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// Bodies that exceed the memory limit wait in temporary files. The files have no name if the system allows that.
//
// The leader of an ordered group can't leave these messages in the broker. Before it delivers anything, it must have received all
// that the previous leader had fetched. If it requeued a single message and its consumer was then lost, RabbitMQ would put that
// message behind those that were fetched after it. An unordered group fetches less when messages are large, but what the broker
// has already sent must be read, because other groups use the same connection.

const (
	// leastSpilled is the size of the smallest body that leaves the memory.
	leastSpilled = 4 << 10
	// spillFileSize is the size at which the next file is begun. A file is deleted when none of its bodies is needed any more.
	spillFileSize = 64 << 20
)

// A spill keeps the bodies of a session's messages in files. Its methods may be called concurrently. Reads and writes
// are done without a lock, and their callers have not locked the receiver's mu, so a slow disk delays only messages in files.
type spill struct {
	create func() (spillStore, error)

	mu     sync.Mutex
	files  []*spillFile // the last one is being filled
	closed bool
}

// spillStore has the methods of [os.File] that a spill uses.
type spillStore interface {
	ReadAt(p []byte, at int64) (int, error)
	WriteAt(p []byte, at int64) (int, error)
	Close() error
}

type spillFile struct {
	spillStore
	size int64
	live int // bodies that are still needed
}

// spilled is a body in a file.
type spilled struct {
	file *spillFile
	at   int64
	size int
}

// errSpillClosed is the error of a session that is over.
var errSpillClosed = errors.New("the session of the temporary file is over")

// temporaryFile is a file that is deleted when it is closed.
type temporaryFile struct{ *os.File }

func newTemporaryFile() (spillStore, error) {
	f, err := os.CreateTemp("", "leat-amqp-*") // of mode 0600
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name()) // Windows: Close does it
	return temporaryFile{f}, nil
}

func (f temporaryFile) Close() error {
	err := f.File.Close()
	_ = os.Remove(f.Name())
	return err
}

// write appends a body. It blocks until the body is written.
func (s *spill) write(body []byte) (*spilled, error) {
	x, err := s.reserve(len(body))
	if err != nil {
		return nil, err
	}
	if _, err := x.file.WriteAt(body, x.at); err != nil {
		s.release(x)
		return nil, err
	}
	return x, nil
}

// reserve returns space for a body in the last file, or in a new one.
func (s *spill) reserve(size int) (*spilled, error) {
	if x, err := s.fill(size); x != nil || err != nil {
		return x, err
	}
	store, err := s.create()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = store.Close()
		return nil, errSpillClosed
	}
	f := &spillFile{spillStore: store}
	s.files = append(s.files, f)
	return f.reserve(size), nil
}

// fill returns space in the last file, or nil if a new one is needed.
func (s *spill) fill(size int) (*spilled, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.files)
	switch {
	case s.closed:
		return nil, errSpillClosed
	case n == 0 || s.files[n-1].size >= spillFileSize:
		return nil, nil
	}
	return s.files[n-1].reserve(size), nil
}

func (f *spillFile) reserve(size int) *spilled {
	x := &spilled{f, f.size, size}
	f.size += int64(size)
	f.live++
	return x
}

// read returns the body. It blocks until the body is read.
func (x *spilled) read() ([]byte, error) {
	body := make([]byte, x.size)
	if _, err := x.file.ReadAt(body, x.at); err != nil {
		return nil, fmt.Errorf("read a message from the temporary file: %w", err)
	}
	return body, nil
}

// retain makes a body outlive one more release.
func (s *spill) retain(x *spilled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.file.live++
}

// release deletes a body.
func (s *spill) release(x *spilled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.file.live--
	if x.file.live == 0 && !s.closed {
		_ = x.file.Close()
		s.files = slices.DeleteFunc(s.files, func(f *spillFile) bool { return f == x.file })
	}
}

// close deletes all bodies.
func (s *spill) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, f := range s.files {
		_ = f.Close()
	}
	s.files = nil
}

// writeBody writes the body to a file and returns its place there, or nil if no file can be written. The body stays in memory until
// the caller calls moveTo. Otherwise the caller releases the place.
func (r *received) writeBody(s *spill, body []byte) *spilled {
	x, err := s.write(body)
	if err != nil && !errors.Is(err, errSpillClosed) && !errors.Is(err, os.ErrClosed) {
		r.t.spillFailed.Do(func() {
			r.t.cfg.Logger.Error("leat: amqp: large messages stay in memory: no temporary file can be written; set TMPDIR to a directory with room for them",
				"group", r.group, "error", err)
		})
	}
	if err != nil {
		return nil
	}
	return x
}

// moveTo drops the body in memory, because it is in a file.
func (r *received) moveTo(x *spilled) {
	r.spilled = x
	r.setBody(nil)
}

// fromFile reads the body into memory. It is called without a lock, by the only goroutine that has the message.
func (r *received) fromFile(s *spill) error {
	body, err := r.spilled.read()
	if err != nil {
		return err
	}
	r.setBody(body)
	r.forgetFile(s)
	return nil
}

// forgetFile deletes a body that is in a file.
func (r *received) forgetFile(s *spill) {
	if r.spilled != nil {
		s.release(r.spilled)
		r.spilled = nil
	}
}

func (r *received) setBody(body []byte) {
	r.raw.Body = body
	if r.read {
		r.msg.Payload = body
	}
}
