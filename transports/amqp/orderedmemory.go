package amqp

import (
	"fmt"
	"time"
)

// An ordered group has three limits of Config.PrefetchBytes/2 each: for bodies that wait in memory, others wait in files; for bodies
// that workers have, except that one worker may have a larger one; and for bodies that the client library has received and the
// session has not.
//
// toFile and load lock the receiver's mu. All other functions of this file but publishQueued and nextQueued are called with it locked.

// keep counts a message that waits in memory. If it exceeds the limit, keep does not count it and returns true: the caller unlocks mu
// and calls toFile.
func (s *orderedSession) keep(it *orderedItem) (toFile bool) {
	if s.over || it.given || s.items[it.tag] != it || it.spilled != nil || it.waits > 0 {
		return false
	}
	if f := s.receiver; it.bytes >= leastSpilled && s.waiting+it.bytes > f.mostBytes {
		return true
	}
	s.count(it)
	return false
}

// count counts a body that waits in memory.
func (s *orderedSession) count(it *orderedItem) {
	it.waits = it.bytes
	s.waiting += it.waits
	s.receiver.notePeak(s)
}

// toFile moves the body of a message to a file. If that fails, the body stays in memory. While the file is written, the message may
// be handed out with the body that is in memory.
func (s *orderedSession) toFile(it *orderedItem) {
	f := s.receiver
	f.mu.Lock()
	body := it.raw.Body // a later delivery of the message shares it, and may drop it meanwhile
	f.mu.Unlock()
	x := it.writeBody(&s.spill, body)
	f.mu.Lock()
	defer f.mu.Unlock()
	waits := !s.over && !it.given && s.items[it.tag] == it
	switch {
	case x != nil && waits:
		it.moveTo(x)
	case x != nil:
		s.spill.release(x)
	case waits:
		s.count(it)
	}
}

// keepAgain counts a message that a worker has settled and that is not acked yet, or waits for its redelivery. It returns the message
// to call toFile for, or nil.
func (s *orderedSession) keepAgain(it *orderedItem) (toFile *orderedItem) {
	switch next := s.items[it.tag]; next {
	case nil:
	case it: // its ack waits for the log; the handler may still read the body
		if !s.over && it.waits == 0 {
			it.waits = it.bytes
			s.waiting += it.waits
		}
	default:
		if s.keep(next) {
			return next
		}
	}
	return nil
}

// load reads the body of a message that a worker gets, if it is in a file. If that fails the session ends, and the broker
// redelivers the message.
func (s *orderedSession) load(it *orderedItem) error {
	if it.spilled == nil {
		return nil
	}
	err := it.fromFile(&s.spill)
	f := s.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		it.seen = true
		return nil
	case s.over: // meanwhile, which has closed the file; the next session would wait for the message's outcome
		f.unseen.add(&it.received)
		s.machine.Failed(time.Now(), it.tag, 0)
	default:
		s.fail(err)
	}
	f.leave(it)
	f.act()
	return err
}

// drop removes a message from the count, and deletes its body if that is in a file.
func (s *orderedSession) drop(it *orderedItem) {
	s.uncount(it)
	it.forgetFile(&s.spill)
}

func (s *orderedSession) uncount(it *orderedItem) {
	s.waiting -= it.waits
	it.waits = 0
}

// roomOut reports whether the message is within the limit of those that workers have.
func (f *orderedReceiver) roomOut(it *orderedItem) bool {
	return f.outBytes == 0 || f.outBytes+it.bytes <= f.mostBytes
}

// notePeak is for tests.
func (f *orderedReceiver) notePeak(s *orderedSession) {
	f.peakBytes = max(f.peakBytes, s.waiting+f.outBytes)
}

// queued is a message to publish when the connection's writer has room.
type queued struct {
	*outgoing
	of *orderedItem // the item with the body; nil if the message has its own
}

// publishQueued publishes the queued messages in order, and no faster than the connection writes. So copies of messages whose bodies
// are in files need no memory while they wait.
func (s *orderedSession) publishQueued() {
	const mandatory, immediate = true, false
	for {
		select {
		case <-s.toPublish:
		case <-s.stopped:
			return
		}
		for {
			_ = s.wire.room(s.receiver.life) // a closed connection has room
			o, x, ok := s.nextQueued()
			var err error
			if x != nil {
				o.msg.Body, err = x.read()
				s.spill.release(x)
			}
			if err == nil && ok {
				err = s.publisher.Publish(o.exchange, o.key, mandatory, immediate, o.msg)
			}
			if err != nil {
				s.fail(fmt.Errorf("publish to a queue of the group: %w", err))
			}
			if err != nil || !ok {
				break
			}
		}
	}
}

// nextQueued removes and returns the next message of the queue. If x is not nil, the body is there, and the caller releases it.
func (s *orderedSession) nextQueued() (o *outgoing, x *spilled, ok bool) {
	s.receiver.mu.Lock()
	defer s.receiver.mu.Unlock()
	if s.over || len(s.queue) == 0 {
		return nil, nil, false
	}
	next := s.queue[0]
	s.queue[0] = queued{}
	s.queue = s.queue[1:]
	if it := next.of; it != nil {
		next.msg.Body = it.raw.Body
		if x = it.spilled; x != nil {
			s.spill.retain(x)
		}
	}
	return next.outgoing, x, true
}
