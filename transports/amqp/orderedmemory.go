package amqp

import (
	"time"
)

// An ordered group has three limits of Config.PrefetchBytes/2 each: for bodies that wait in memory, others wait in files; for bodies
// that workers have, except that one worker may have a larger one; and for bodies that the client library has received and the
// session has not.
//
// toFile and load lock the receiver's mu. All other functions of this file are called with it locked.

// orderedBodies decides for a session which bodies wait in memory, and which in files.
type orderedBodies struct {
	s       *orderedSession
	spill   spill
	waiting int // bytes of bodies that wait in memory
}

// keep counts a message that waits in memory. If it exceeds the limit, keep does not count it and returns true: the caller unlocks mu
// and calls toFile.
func (b *orderedBodies) keep(it *orderedItem) (toFile bool) {
	if b.s.over || it.given || b.s.items[it.tag] != it || it.spilled != nil || it.waits > 0 {
		return false
	}
	if f := b.s.receiver; it.bytes >= leastSpilled && b.waiting+it.bytes > f.mostBytes {
		return true
	}
	b.count(it)
	return false
}

// count counts a body that waits in memory.
func (b *orderedBodies) count(it *orderedItem) {
	it.waits = it.bytes
	b.waiting += it.waits
	b.s.receiver.notePeak(b.s)
}

// toFile moves the body of a message to a file. If that fails, the body stays in memory. While the file is written, the message may
// be handed out with the body that is in memory.
func (b *orderedBodies) toFile(it *orderedItem) {
	f := b.s.receiver
	f.mu.Lock()
	body := it.raw.Body // a later delivery of the message shares it, and may drop it meanwhile
	f.mu.Unlock()
	x := it.writeBody(&b.spill, body)
	f.mu.Lock()
	defer f.mu.Unlock()
	waits := !b.s.over && !it.given && b.s.items[it.tag] == it
	switch {
	case x != nil && waits:
		it.moveTo(x)
	case x != nil:
		b.spill.release(x)
	case waits:
		b.count(it)
	}
}

// keepAgain counts a message that a worker has settled and that is not acked yet, or waits for its redelivery. It returns the message
// to call toFile for, or nil.
func (b *orderedBodies) keepAgain(it *orderedItem) (toFile *orderedItem) {
	switch next := b.s.items[it.tag]; next {
	case nil:
	case it: // its ack waits for the log; the handler may still read the body
		if !b.s.over && it.waits == 0 {
			it.waits = it.bytes
			b.waiting += it.waits
		}
	default:
		if b.keep(next) {
			return next
		}
	}
	return nil
}

// load reads the body of a message that a worker gets, if it is in a file. If that fails the session ends, and the broker
// redelivers the message.
func (b *orderedBodies) load(it *orderedItem) error {
	if it.spilled == nil {
		return nil
	}
	err := it.fromFile(&b.spill)
	f := b.s.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		it.seen = true
		return nil
	case b.s.over: // meanwhile, which has closed the file; the next session would wait for the message's outcome
		f.unseen.add(&it.received)
		b.s.machine.Failed(time.Now(), it.tag, 0)
	default:
		b.s.fail(err)
	}
	f.leave(it)
	f.act()
	return err
}

// drop removes a message from the count, and deletes its body if that is in a file.
func (b *orderedBodies) drop(it *orderedItem) {
	b.uncount(it)
	it.forgetFile(&b.spill)
}

func (b *orderedBodies) uncount(it *orderedItem) {
	b.waiting -= it.waits
	it.waits = 0
}

// roomOut reports whether the message is within the limit of those that workers have.
func (f *orderedReceiver) roomOut(it *orderedItem) bool {
	return f.outBytes == 0 || f.outBytes+it.bytes <= f.mostBytes
}

// notePeak is for tests.
func (f *orderedReceiver) notePeak(s *orderedSession) {
	f.peakBytes = max(f.peakBytes, s.bodies.waiting+f.outBytes)
}
