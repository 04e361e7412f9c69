package ordered

import "time"

// A session has what the parts of a [Machine] share: the state, and the effects that they cause.
type session struct {
	config Config
	memory *Memory
	state  *State
	now    time.Time

	effects  []Effect
	ops      uint64    // publishings, so far
	names    uint64    // chosen, so far
	pending  []pending // publishings that are not confirmed, in their order
	stopping bool
	over     bool // the session has ended, or must
}

// pending is a publishing on its way.
type pending struct {
	op   uint64
	then func() // nil if nothing depends on it
}

func (s *session) emit(e Effect) {
	if !s.over {
		s.effects = append(s.effects, e)
	}
}

// name returns a new name.
func (s *session) name() Name {
	s.names++
	return Name{s.state.epoch, s.names}
}

// op returns a number for a publishing. Then is called when it is confirmed.
func (s *session) op(then func()) uint64 {
	s.ops++
	if !s.over {
		s.pending = append(s.pending, pending{s.ops, then})
	}
	return s.ops
}

func (s *session) copy(it *item, c Copy, then func()) {
	c.Tag, c.Op = it.msg.Tag, s.op(then)
	s.emit(c)
}

func (s *session) send(to Source, c Control, name Name) {
	s.emit(Send{Op: s.op(nil), To: to, Control: c, Name: name})
}

// write applies a record to the state and writes it to the log.
func (s *session) write(r *Record, then func()) {
	r.Epoch, r.N = s.state.epoch, s.state.last+1
	_ = s.state.Apply(r) // if it is full, the record counts at the next takeover
	s.emit(Write{s.op(then), r})
}

// afterRecords calls then when all publishings so far are confirmed. A record that is not confirmed may be lost with the session, although
// the state has it.
func (s *session) afterRecords(then func()) {
	if len(s.pending) == 0 {
		then()
		return
	}
	last := &s.pending[len(s.pending)-1]
	before := last.then
	last.then = func() {
		if before != nil {
			before()
		}
		then()
	}
}

// confirmed ends all publishings up to op.
func (s *session) confirmed(op uint64) {
	for !s.over && len(s.pending) > 0 && s.pending[0].op <= op {
		then := s.pending[0].then
		s.pending = s.pending[1:]
		if then != nil {
			then()
		}
	}
}

// stepDown ends the session.
func (s *session) stepDown(reason string) {
	s.emit(StepDown{reason})
	s.over = true
}
