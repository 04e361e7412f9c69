package ordered

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// inPass returns a machine with a released key and a pass that has begun.
func inPass(t *testing.T, otherEmpty bool) *bench {
	b, head := blocked(t)
	b.Handled(b.now, b.arrives(Message{Key: "k", Head: head}))
	b.confirmAll()
	require.NotNil(t, b.pairs[0].pass)
	b.PassStarted(b.now, 1, otherEmpty)
	b.wants("marker")
	return b
}

func (b *bench) seq(n uint64) Name { return Name{b.state.epoch, n} }

func (b *bench) readsMarker() {
	b.reads(Message{Control: ControlMarker, Name: b.pairs[0].pass.marker})
}

func TestPass_movesKeysThatAreBlocked(t *testing.T) {
	b := inPass(t, true)
	b.arrives(Message{Control: ControlBlock, Key: "other", Head: "op-1"})
	b.confirmAll()
	b.arrives(Message{Key: "other"})
	b.confirmAll()
	b.reads(Message{Key: "other", Seq: b.seq(5)})
	b.wants("copy 8 to parked")
	b.readsMarker()
	b.wants("ack 9")
	b.confirm()
	b.wants("ack 8", "marker") // something was parked since
	b.readsMarker()
	b.wants("ack 10", "open", "turn", "EndPass")
	require.Equal(t, Side(1), b.pairs[0].side())
}

func TestPass_movesAllWhenTheOtherSideComesFirst(t *testing.T) {
	b := inPass(t, false)
	b.reads(Message{Key: "k", Seq: b.seq(5)})
	b.wants("copy 6 to parked")
	b.confirm()
	b.readsMarker()
	b.wants("ack 6", "ack 7", "turn", "EndPass")
	require.Equal(t, 1, b.Stats().Draining)
}

func TestPass_movesAKeyThatIsReleasedTooLate(t *testing.T) {
	b := inPass(t, true)
	b.arrives(Message{Control: ControlBlock, Key: "k", Head: "op-1"})
	b.confirmAll()
	b.reads(Message{Key: "k", Seq: b.seq(5)})
	b.wants("copy 7 to parked")
	b.arrives(Message{Control: ControlDrop, Head: "op-1"})
	b.wants("done")
	b.reads(Message{Key: "k", Seq: b.seq(6)})
	b.wants("copy 9 to parked")
}

func TestPass_nextWaitsForTheFenceOfTheTurn(t *testing.T) {
	b := inPass(t, false)
	b.readsMarker()
	b.wants("ack 6", "turn", "EndPass")
	b.Advance(b.now)
	b.wants()
	b.confirm()
	b.wants("fence")
	b.Advance(b.now)
	b.wants()
	b.arrives(Message{Control: ControlFence, Name: b.seq(b.names)})
	b.wants("StartPass", "ack 7")
}

func TestPass_dropsWhatDoesNotCount(t *testing.T) {
	for name, msg := range map[string]Message{
		"before the key was parked":  {Key: "k", Seq: Name{1, 1}},
		"of a key that is not known": {Key: "other", Seq: Name{1 << 20, 1}},
		"whose ack was lost":         {Key: "k", Seq: Name{1 << 20, 1}},
		"an old marker":              {Control: ControlMarker, Name: Name{1, 1}},
		"from before the turn":       {Key: "k", Seq: Name{1 << 20, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			b := inPass(t, true)
			b.state.epoch = 1 << 20
			b.state.keys["k"].since = 100
			if name == "whose ack was lost" {
				b.state.pair(1).Void[0] = Name{1 << 20, 2}
			}
			if name == "from before the turn" { // to this side: its writer was in a turn of its own, which was void
				b.state.pair(1).Void[1] = Name{1 << 20, 2}
			}
			b.reads(msg)
			b.wants("ack 6")
		})
	}
}

func TestPass_countsWhatWasMovedBeforeTheTurn(t *testing.T) {
	b := inPass(t, true)
	b.state.pair(1).Void[1] = Name{b.state.epoch, 3}
	b.reads(Message{Key: "k", Seq: b.seq(1), Stamp: b.seq(2)})
	b.wants("deliver 6")
}

func TestPass_putsForeignMessagesIntoThePoisonQueue(t *testing.T) {
	b := inPass(t, true)
	b.reads(Message{Key: "k"})
	b.wants("copy 6 to poison")
	b.confirm()
	b.wants("ack 6")
}

func TestPass_stepsDownWhenItReadsALaterLeadersCopy(t *testing.T) {
	b := inPass(t, true)
	b.reads(Message{Key: "k", Seq: Name{b.state.epoch + 1, 1}})
	b.wants("StepDown")
}

func TestPass_acksWhatArrivesAfterItsEnd(t *testing.T) {
	b := inPass(t, false)
	b.readsMarker()
	b.Effects()
	b.reads(Message{Key: "k", Seq: Name{1, 1}})
	b.wants("ack 7")
	b.reads(Message{Key: "k", Seq: b.seq(1 << 30)})
	b.wants("StepDown")
}

func TestPass_pausesAfterItHasMovedMessages(t *testing.T) {
	b := inPass(t, false)
	b.reads(Message{Key: "k", Seq: b.seq(5)})
	b.confirmAll()
	b.now = b.now.Add(time.Second)
	b.Advance(b.now)
	b.readsMarker()
	b.confirmAll()
	b.arrives(Message{Control: ControlFence, Name: b.seq(b.names)})
	b.confirmAll()
	b.Effects()
	require.Equal(t, b.now.Add(3*time.Second), b.pairs[0].notBefore)
}

func TestPass_sweepsAndHandsOutAllWhenTheLogWasLost(t *testing.T) {
	config := testConfig()
	over := NewTakeover(config, NewMemory(), "me", time.Unix(100, 0))
	over.state.epoch, over.state.lost = 7, true
	b := &bench{t: t, Machine: New(over, map[Source]int{{1, 0}: 2}, time.Unix(100, 0)), now: time.Unix(100, 0)}
	b.wants("tick", "StartPass")
	b.PassStarted(b.now, 1, true)
	b.wants("marker")
	b.reads(Message{Key: "k", Seq: Name{3, 1}})
	b.wants("park", "deliver 1")
	b.Handled(b.now, 1)
	b.readsMarker()
	b.wants("ack 1", "ack 2", "open", "swept", "turn", "EndPass")
}

func TestPass_sweepsLeftovers(t *testing.T) {
	over := NewTakeover(testConfig(), NewMemory(), "me", time.Unix(100, 0))
	over.state.epoch, over.state.intact = 7, true
	b := &bench{t: t, Machine: New(over, map[Source]int{{1, 1}: 2}, time.Unix(100, 0)), now: time.Unix(100, 0)}
	b.wants("tick", "StartPass")
	b.PassStarted(b.now, 1, false)
	b.wants("marker")
	b.reads(Message{Key: "k", Seq: Name{3, 1}})
	b.wants("ack 1")
}

func TestMachine_keepsSomethingUnackedBeforeItsFirstTick(t *testing.T) {
	over := NewTakeover(testConfig(), NewMemory(), "me", time.Unix(100, 0))
	over.state.epoch = 7
	b := &bench{t: t, Machine: New(over, nil, time.Unix(100, 0)), now: time.Unix(100, 0)}
	b.wants("tick")
	for range 2 {
		b.Handled(b.now, b.arrives(Message{Key: "k"}))
	}
	b.wants("deliver 1", "deliver 2", "ack 1")
	b.arrives(Message{Control: ControlTick})
	b.wants("ack 2")
}

// ticks lets time pass, returns each tick to the leader, and counts them.
func (b *bench) ticks(d time.Duration) (n int) {
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(b.config.Tick / 2)
		b.Advance(b.now)
		for _, e := range b.Effects() {
			if send, ok := e.(Send); ok && send.Control == ControlTick {
				n++
				b.Confirmed(b.now, send.Op)
				b.arrives(Message{Control: ControlTick, Name: send.Name})
			}
		}
	}
	return n
}

func TestLeader_sendsFewTicksWhileThereIsNothingToDo(t *testing.T) {
	b := started(t)
	require.Equal(t, 60, b.ticks(time.Hour), "one for each Config.Idle")
	tag := b.arrives(Message{Key: "k"})
	require.Equal(t, 60, b.ticks(time.Minute), "one for each Config.Tick")
	b.Handled(b.now, tag)
	b.ticks(time.Minute)
	for range 60 { // what arrives replaces ticks
		b.Handled(b.now, b.arrives(Message{Key: "k"}))
		require.LessOrEqual(t, b.ticks(b.config.Tick/2), 1)
	}
	require.Equal(t, 60, b.ticks(time.Hour))
}

func TestLeader_readingAParkedQueueIsSomethingToDo(t *testing.T) {
	over := NewTakeover(testConfig(), NewMemory(), "me", time.Unix(100, 0))
	over.state.epoch, over.state.intact = 7, true
	b := &bench{t: t, Machine: New(over, map[Source]int{{1, 0}: 1}, time.Unix(100, 0)), now: time.Unix(100, 0)}
	b.arrives(Message{Control: ControlTick})
	b.Confirmed(b.now, b.ops)
	require.Greater(t, b.ticks(time.Minute), 50)
}

func TestLeader_stepsDownWhenATickOfAnIdleGroupDoesNotReturn(t *testing.T) {
	b := started(t)
	var reason string
	began := b.now
	for reason == "" && b.now.Sub(began) < time.Hour {
		b.now = b.now.Add(b.config.Tick / 2)
		b.Advance(b.now)
		for _, e := range b.Effects() {
			switch e := e.(type) {
			case Send:
				b.Confirmed(b.now, e.Op)
			case StepDown:
				reason = e.Reason
			}
		}
	}
	require.Equal(t, silence, reason)
	require.InDelta(t, (b.config.Idle() + 4*b.config.Tick).Seconds(), b.now.Sub(began).Seconds(), 2)
}

func TestMachine_leavesItsTickToAProcessThatStandsBy(t *testing.T) {
	for name, c := range map[string]struct {
		tick   Message
		effect []string
	}{
		"its own":        {Message{Control: ControlTick, Head: "me"}, []string{"ack 3"}},
		"an earlier one": {Message{Control: ControlTick, Name: Name{1, 1}}, []string{"ack 3"}},
		"another":        {Message{Control: ControlTick, Head: "another"}, nil},
		"of old":         {Message{Control: ControlTick}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := started(t)
			b.arrives(c.tick)
			b.Stop(b.now)
			b.Effects()
			b.Leave()
			b.wants(c.effect...)
		})
	}
}

func TestMachine_dropWaitsForTheRecordOfWhatItDrops(t *testing.T) {
	b := started(t)
	b.Poisoned(b.now, b.arrives(Message{Key: "k"}))
	b.wants("deliver 3", "copy 3 to poison")
	for head := range b.departing {
		b.arrives(Message{Control: ControlDrop, Head: head})
	}
	b.wants()
	b.confirm()
	b.wants("block")
	b.confirm()
	b.wants("done", "ack 3")
	b.confirm()
	b.wants("ack 4")
}

// The parked queue takes back what the process has, and delivers it again. If the process does not lead any more, the record that the
// message is away may be void, and an ack in a parked queue is valid all the same.
func TestPass_acksWhatIsAwayBehindAFence(t *testing.T) {
	b := inPass(t, true)
	parked := Message{Key: "k", Print: printOf(8), Seq: b.seq(5)}
	b.Failed(b.now, b.reads(parked), time.Minute)
	b.wants("deliver 6", "copy 6 to delay")
	b.confirm()
	b.wants("block")
	b.confirm()
	b.wants("fence")
	parked.Redelivered = true
	b.reads(parked)
	b.wants("fence")
	b.arrives(Message{Control: ControlFence, Name: b.seq(b.names)})
	b.wants("ack 7", "ack 8")
}
