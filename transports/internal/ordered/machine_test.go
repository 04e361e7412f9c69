package ordered

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests show the transitions of a key one by one. The model test looks for what they miss.

// bench drives a machine by hand. The broker confirms nothing by itself.
type bench struct {
	t *testing.T
	*Machine
	now  time.Time
	tag  Tag
	last uint64 // publishing
}

// printOf is a print that is zero for 0.
func printOf(n uint64) (p Print) {
	binary.BigEndian.PutUint64(p[:], n)
	return p
}

func testConfig() Config {
	return Config{
		Park: true, Prefetch: 20, Held: 10, HeldBytes: 1 << 20, MaxKeys: 10, MaxKeyBytes: 1 << 10, Pairs: 1, LogRecords: 1000,
		Short: time.Second, Tick: time.Second, Idle: func() time.Duration { return time.Minute }, Process: "me",
	}
}

// lead takes a group over that has this log.
func lead(t *testing.T, config Config, log ...*Record) *bench {
	return leadWith(t, config, nil, log...)
}

func leadWith(t *testing.T, config Config, adopted []*Message, log ...*Record) *bench {
	now := time.Unix(100, 0)
	over := NewTakeover(config, NewMemory(), "me", now)
	over.Adopt(adopted)
	if len(log) > 0 { // else the log counts as deleted
		log = append([]*Record{
			{Kind: kindEpoch, Epoch: 4, Writer: "before"}, {Kind: kindSnapshot, Epoch: 4, N: 1, Parts: 1}, {Kind: kindEpoch, Epoch: 5, Writer: "last", After: 4},
		}, log...)
	}
	for _, r := range log {
		require.NoError(t, over.Read(now, r.Encode()))
	}
	var last uint64
	for !over.Ready() {
		effects := over.Effects()
		require.NotEmpty(t, effects)
		for _, e := range effects {
			switch e := e.(type) {
			case Write:
				last = e.Op
				require.NoError(t, over.Read(now, e.Record.Encode()))
			case Send:
				over.Arrived(now, &Message{Tag: 1, Control: e.Control, Head: e.Head})
			}
		}
		over.Confirmed(last)
	}
	b := &bench{t: t, Machine: New(over, nil, now), now: now, tag: 1}
	b.Arrived(now, Source{}, &Message{Tag: 2, Control: ControlTick, Head: config.Process})
	b.tag = 2
	return b
}

// arrives delivers a message of the group's queue.
func (b *bench) arrives(msg Message) Tag {
	b.tag++
	msg.Tag = b.tag
	b.Arrived(b.now, Source{}, &msg)
	return b.tag
}

func (b *bench) reads(msg Message) Tag {
	b.tag++
	msg.Tag = b.tag
	b.Arrived(b.now, Source{Pair: 1}, &msg)
	return b.tag
}

// wants checks the effects, as text without what is not of interest.
func (b *bench) wants(effects ...string) {
	b.t.Helper()
	var got []string
	for _, e := range b.Effects() {
		var text string
		switch e := e.(type) {
		case Deliver:
			text = fmt.Sprintf("deliver %d", e.Tag)
		case Ack:
			text = fmt.Sprintf("ack %d", e.Tag)
		case Copy:
			text = fmt.Sprintf("copy %d to %s", e.Tag, []string{"delay", "poison", "parked"}[e.To])
			b.last = e.Op
		case Write:
			text = e.Record.Kind
			b.last = e.Op
		case Send:
			text = string(e.Control)
			b.last = e.Op
		default:
			text = strings.TrimPrefix(fmt.Sprintf("%T", e), "ordered.")
		}
		got = append(got, text)
	}
	require.Equal(b.t, effects, got)
}

func (b *bench) confirm() { b.Confirmed(b.now, b.last) }

// started returns a machine whose first effects are out of the way.
func started(t *testing.T, log ...*Record) *bench {
	b := lead(t, testConfig(), log...)
	b.Effects()
	b.Confirmed(b.now, b.ops)
	return b
}

func TestKey_open_handsOutOneAfterTheOther(t *testing.T) {
	b := started(t)
	first, second := b.arrives(Message{Key: "k"}), b.arrives(Message{Key: "k"})
	b.arrives(Message{Key: "other"})
	b.wants("deliver 3", "deliver 5")
	b.Handled(b.now, first)
	b.wants("ack 3", "deliver 4")
	b.Handled(b.now, second)
	b.wants("ack 4")
}

func TestKey_open_waitsHereForAShortTime(t *testing.T) {
	b := started(t)
	first := b.arrives(Message{Key: "k"})
	b.arrives(Message{Key: "k"})
	b.Failed(b.now, first, 500*time.Millisecond)
	b.wants("deliver 3")
	b.now = b.now.Add(500 * time.Millisecond)
	require.False(t, b.Next().After(b.now))
	b.Advance(b.now)
	b.wants("deliver 3")
}

func TestKey_open_becomesBlocked(t *testing.T) {
	for target, fail := range map[string]func(*bench, Tag){
		"delay":  func(b *bench, tag Tag) { b.Failed(b.now, tag, time.Minute) },
		"poison": func(b *bench, tag Tag) { b.Poisoned(b.now, tag) },
	} {
		t.Run(target, func(t *testing.T) {
			b := started(t)
			fail(b, b.arrives(Message{Key: "k"}))
			b.wants("deliver 3", "copy 3 to "+target)
			b.arrives(Message{Key: "k"})
			b.wants()
			b.confirm()
			b.wants("block", "park")
			b.confirm()
			b.wants("ack 3", "copy 4 to parked")
			b.confirm()
			b.wants("ack 4")
		})
	}
}

// blocked returns a machine with a key whose message of this name is in the poison queue, and which has a parked one.
func blocked(t *testing.T) (*bench, string) {
	b := started(t)
	b.Poisoned(b.now, b.arrives(Message{Key: "k", Print: printOf(7)}))
	b.confirmAll()
	b.arrives(Message{Key: "k", Print: printOf(8)})
	b.confirmAll()
	require.Equal(t, Stats{Poisoned: 1, Stopped: 1, Keys: 1, Parked: 1, Here: 1}, b.Stats())
	return b, b.state.keys["k"].away[0].Head
}

func (b *bench) confirmAll() {
	for len(b.pending) > 0 {
		b.Confirmed(b.now, b.ops)
	}
	b.Effects()
}

func TestKey_blocked_runsItsHeadFirstAndDrains(t *testing.T) {
	b, head := blocked(t)
	tag := b.arrives(Message{Key: "k", Print: printOf(7), Head: head})
	b.wants("deliver 5")
	b.Handled(b.now, tag)
	b.wants("done")
	b.confirm()
	b.wants("ack 5", "StartPass")

	b.arrives(Message{Key: "k", Print: printOf(9)})
	b.PassStarted(b.now, 1, true)
	b.wants("marker")
	parked := b.reads(Message{Key: "k", Print: printOf(8), Seq: Name{b.state.epoch, 1}})
	b.reads(Message{Control: ControlMarker, Name: b.pairs[0].pass.marker})
	b.wants("deliver 7", "ack 8")
	b.Handled(b.now, parked)
	b.wants("ack 7", "open", "turn", "EndPass", "deliver 6")
	b.confirm()
	b.wants("fence")
	require.Equal(t, 0, b.Stats().Keys)
}

func TestKey_blocked_staysSoWhenItsHeadFailsAgain(t *testing.T) {
	b, head := blocked(t)
	b.Poisoned(b.now, b.arrives(Message{Key: "k", Print: printOf(7), Head: head}))
	b.wants("deliver 5", "copy 5 to poison")
	b.confirm()
	b.wants("block")
	b.confirm()
	b.wants("ack 5")
	require.NotEqual(t, head, b.state.keys["k"].away[0].Head)
	b.arrives(Message{Key: "k", Print: printOf(7), Head: head})
	b.wants("ack 6")
}

func TestKey_blocked_isReleasedByADrop(t *testing.T) {
	b, head := blocked(t)
	b.arrives(Message{Control: ControlDrop, Head: head})
	b.wants("done", "StartPass")
	b.confirm()
	b.wants("ack 5")
	require.Equal(t, 1, b.Stats().Draining)
}

func TestKey_blocked_headWaitsForItsOwnRecord(t *testing.T) {
	b := started(t)
	b.Poisoned(b.now, b.arrives(Message{Key: "k"}))
	head := ""
	for _, e := range b.Effects() {
		if c, ok := e.(Copy); ok {
			head, b.last = c.Head, c.Op
		}
	}
	b.arrives(Message{Key: "k", Head: head}) // an operator is faster than the broker's confirmation
	b.wants()
	b.confirm()
	b.wants("block")
	b.confirm()
	b.wants("ack 3", "deliver 4")
}

func TestKey_draining_failsAgainBehindAFence(t *testing.T) {
	b, head := blocked(t)
	b.Handled(b.now, b.arrives(Message{Key: "k", Head: head}))
	b.confirmAll()
	b.Advance(b.now.Add(time.Millisecond))
	b.PassStarted(b.now, 1, true)
	b.Effects()
	first := b.reads(Message{Key: "k", Print: printOf(8), Seq: Name{b.state.epoch, 1}})
	b.reads(Message{Key: "k", Print: printOf(9), Seq: Name{b.state.epoch, 2}})
	b.Poisoned(b.now, first)
	b.wants("deliver 6", "copy 6 to poison")
	b.confirm()
	b.wants("block")
	b.confirm()
	b.wants("fence")
	fence := Name{b.state.epoch, b.names}
	b.arrives(Message{Control: ControlFence, Name: fence})
	b.wants("ack 6", "copy 7 to parked", "ack 8")
}

func TestKey_withoutName_isNeverParked(t *testing.T) {
	b := started(t)
	b.Poisoned(b.now, b.arrives(Message{}))
	b.arrives(Message{})
	b.wants("deliver 3", "copy 3 to poison", "deliver 4")
	b.confirm()
	b.wants("ack 3")
	require.Equal(t, 0, b.Stats().Keys)
}

func TestKey_ofAGroupThatDoesNotPark_goesOnPastAPoisonedMessage(t *testing.T) {
	config := testConfig()
	config.Park = false
	b := lead(t, config, &Record{Kind: kindBlock, Epoch: 5, N: 1, Key: "k", Away: &away{Head: "op-1", Poison: true}})
	b.Effects()
	b.Poisoned(b.now, b.arrives(Message{Key: "k"}))
	b.arrives(Message{Key: "k"})
	b.wants("deliver 3", "copy 3 to poison")
	b.confirm()
	b.wants("ack 3", "deliver 4")
}

func TestKey_imported_isBlockedUntilTheMessageIsReplayed(t *testing.T) {
	b := started(t)
	b.arrives(Message{Control: ControlBlock, Key: "k", Head: "op-1"})
	b.wants("block")
	b.confirm()
	b.wants("ack 3")
	b.arrives(Message{Key: "k"})
	b.wants("park")
	b.arrives(Message{Key: "k", Head: "op-1"})
	b.wants("deliver 5")
}

// While a process takes the lead, the broker may take back what it has delivered and deliver it again. So the machine meets a
// message twice, and only the ack of the second counts. It must not be acked before the record that the first has caused is confirmed.
func TestMachine_acksASecondDeliveryBehindTheRecordOfTheFirst(t *testing.T) {
	imported := Message{Control: ControlBlock, Key: "k", Head: "op-1"}
	dropped := Message{Control: ControlDrop, Head: "op-1"}
	block := &Record{Kind: kindBlock, Epoch: 5, N: 1, Key: "k", Away: &away{Head: "op-1", Poison: true}}
	t.Run("import", func(t *testing.T) {
		b := started(t)
		b.arrives(imported)
		b.arrives(imported)
		b.wants("block")
		b.confirm()
		b.wants("ack 3", "ack 4")
	})
	t.Run("drop", func(t *testing.T) {
		b := started(t, block)
		b.arrives(dropped)
		b.arrives(dropped)
		b.wants("done")
		b.confirm()
		b.wants("ack 3", "ack 4")
	})
	t.Run("dropped replay", func(t *testing.T) {
		b := started(t)
		running := b.arrives(Message{Key: "k"})
		b.arrives(imported)
		b.wants("deliver 3", "block")
		b.confirm()
		b.wants("ack 4")
		b.arrives(Message{Key: "k", Head: "op-1"})
		b.arrives(dropped)
		b.Handled(b.now, running)
		b.wants("done", "ack 3")
		b.confirm()
		b.wants("ack 6", "ack 5")
	})
	t.Run("replay", func(t *testing.T) {
		b := started(t, block)
		b.Handled(b.now, b.arrives(Message{Key: "k", Head: "op-1"}))
		b.arrives(Message{Key: "k", Head: "op-1"})
		b.wants("deliver 3", "done")
		b.confirm()
		b.wants("ack 3", "ack 4")
	})
}

func TestMachine_reportsWhenNoMoreKeysFit(t *testing.T) {
	config := testConfig()
	config.MaxKeys = 1
	b := lead(t, config)
	b.Effects()
	b.Poisoned(b.now, b.arrives(Message{Key: "a"}))
	b.Poisoned(b.now, b.arrives(Message{Key: "b"}))
	b.wants("deliver 3", "copy 3 to poison", "deliver 4", "Report")
	require.True(t, b.Stats().Full)
}

func TestMachine_sendsAwayWhatHoldsUpTooMuch(t *testing.T) {
	b := started(t)
	b.Failed(b.now, b.arrives(Message{Key: "k"}), time.Second)
	for range 9 {
		b.arrives(Message{Key: "k"})
	}
	b.wants("deliver 3")
	b.arrives(Message{Key: "k"})
	b.wants("copy 3 to delay")
}

func TestMachine_stepsDown(t *testing.T) {
	for name, happens := range map[string]func(*bench){
		"redelivery":  func(b *bench) { b.arrives(Message{Key: "k", Redelivered: true}) },
		"later epoch": func(b *bench) { b.arrives(Message{Control: ControlTick, Name: Name{b.state.epoch + 1, 1}}) },
		"silence": func(b *bench) {
			b.arrives(Message{Key: "k"})
			for range 12 {
				b.now = b.now.Add(500 * time.Millisecond)
				b.Advance(b.now)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := started(t)
			happens(b)
			effects := b.Effects()
			require.NotEmpty(t, effects)
			require.IsType(t, StepDown{}, effects[len(effects)-1])
			b.arrives(Message{Key: "k"})
			b.wants()
		})
	}
}

func TestMachine_doesNotCountTheTimeInWhichItStoodStill(t *testing.T) {
	b := started(t)
	b.Advance(b.now.Add(time.Hour))
	b.wants("tick")
}

func TestMachine_stalledHandsOutNothingBeforeAFenceHasReturned(t *testing.T) {
	b := started(t)
	b.Stalled(b.now)
	b.wants("fence")
	require.False(t, b.MayDeliver())
	b.arrives(Message{Control: ControlFence, Name: Name{b.state.epoch, b.names}})
	require.True(t, b.MayDeliver())
}

func TestMachine_adoptsWhatAnEarlierVersionHeld(t *testing.T) {
	due := time.Unix(100, 0).Add(time.Minute)
	b := leadWith(t, testConfig(), []*Message{
		{Tag: 1001, Key: "a", Control: ControlBlock, Head: "place-1"},
		{Tag: 1002, Key: "a"},
		{Tag: 1003, Key: "b", Due: due},
		{Tag: 1004, Key: "b"},
	})
	b.wants("swept", "block", "park", "copy 1003 to delay", "tick", "ack 1")
	b.confirm()
	b.wants("ack 1001", "copy 1002 to parked", "block", "park")
	b.confirm()
	b.wants("ack 1002", "ack 1003", "copy 1004 to parked")
	b.confirm()
	b.wants("ack 1004")
	require.Equal(t, 1, b.leader.unacked)
}

func TestTakeover_makesRoomForItsProof(t *testing.T) {
	now := time.Unix(100, 0)
	config := testConfig()
	over := NewTakeover(config, NewMemory(), "me", now)
	for tag := range config.Prefetch {
		over.Arrived(now, &Message{Tag: Tag(tag + 1)})
	}
	effects := over.Effects()
	require.NoError(t, over.Read(now, effects[0].(Write).Record.Encode()))
	effects = over.Effects()
	require.Contains(t, effects, Effect(Return{Tag(config.Prefetch)}))
	require.Len(t, over.first, config.Prefetch-1)
	over.Arrived(now, &Message{Tag: 101, Redelivered: true})
	require.IsType(t, Write{}, over.Effects()[0])
	require.Len(t, over.first, config.Prefetch)
}

func TestTakeover_stepsDownIfSomethingElseIsRedelivered(t *testing.T) {
	now := time.Unix(100, 0)
	config := testConfig()
	over := NewTakeover(config, NewMemory(), "me", now)
	require.NoError(t, over.Read(now, over.Effects()[0].(Write).Record.Encode()))
	for tag := range config.Prefetch {
		over.Arrived(now, &Message{Tag: Tag(tag + 1), Print: printOf(uint64(tag + 1))})
	}
	over.Effects()
	over.Arrived(now, &Message{Tag: 101, Print: printOf(1), Redelivered: true}) // of all that the broker has taken back, the first
	require.IsType(t, StepDown{}, over.Effects()[0])
}

func TestTakeover_claimsAgainWhenAnotherWasFaster(t *testing.T) {
	now := time.Unix(100, 0)
	memory := NewMemory()
	memory.epoch = 1000 // its claim will be for a later epoch than the other's
	over := NewTakeover(testConfig(), memory, "me", now)
	require.NoError(t, over.Read(now, over.Effects()[0].(Write).Record.Encode()))
	fence := over.Effects()[0].(Send)
	over.Arrived(now, &Message{Tag: 1, Control: fence.Control, Head: fence.Head})
	claim := over.Effects()[0].(Write).Record
	require.NoError(t, over.Read(now, (&Record{Kind: kindEpoch, Epoch: 5, Writer: "other"}).Encode()))
	require.NoError(t, over.Read(now, claim.Encode()))
	require.IsType(t, Send{}, over.Effects()[0], "it proves again that it may lead")
	require.False(t, over.Compacts())
}

func TestMemory_acksWhatTheProcessHasHandled(t *testing.T) {
	b := started(t)
	tag := b.arrives(Message{Key: "k", Print: printOf(5)})
	b.Close([]Tag{tag})
	memory := b.memory
	b.Handled(b.now, tag)
	it := &item{msg: Message{Key: "k", Print: printOf(5), Redelivered: true}}
	require.True(t, memory.has(it))
	it.msg.Redelivered = false
	require.False(t, memory.has(it), "a publisher may publish it twice")
	require.Empty(t, memory.out)
}

func TestMemory_holdsBackKeysOfWhichAnotherSessionHasAMessage(t *testing.T) {
	old := started(t)
	tag := old.arrives(Message{Key: "k", Print: printOf(5)})
	old.Close([]Tag{tag})

	over := NewTakeover(testConfig(), old.memory, "me again", old.now)
	over.state.epoch = old.state.epoch + 1
	over.first = []*Message{{Tag: 1, Key: "k", Print: printOf(5), Redelivered: true}, {Tag: 2, Key: "k", Print: printOf(6), Redelivered: true}}
	b := &bench{t: t, Machine: New(over, nil, old.now), now: old.now, tag: 2}
	b.wants("tick")
	old.Handled(b.now, tag)
	b.wants("deliver 2") // and the ack of the first waits for the next
	b.Handled(b.now, 2)
	b.wants("ack 1")
}

func TestMachine_acksTheOriginalOfWhatIsAway(t *testing.T) {
	over := NewTakeover(testConfig(), NewMemory(), "me", time.Unix(100, 0))
	over.state.epoch = 7
	require.NoError(t, over.state.Apply(&Record{Kind: kindBlock, Epoch: 7, N: 1, Key: "k", Away: &away{Head: "6-1", Digest: printOf(5)}}))
	over.first = []*Message{{Tag: 1, Key: "k", Print: printOf(5), Redelivered: true}, {Tag: 2, Control: ControlTick}, {Tag: 3, Key: "k", Print: printOf(5)}}
	b := &bench{t: t, Machine: New(over, nil, time.Unix(100, 0))}
	b.wants("ack 1", "park", "tick")
}

func TestTakeover_ignoresAnEarlierClaimThatIsSentAgain(t *testing.T) {
	now := time.Unix(100, 0)
	over := NewTakeover(testConfig(), NewMemory(), "me", now)
	first := over.Effects()[0].(Write).Record.Encode()
	require.NoError(t, over.Read(now, first))
	fence := over.Effects()[0].(Send)
	over.Arrived(now, &Message{Tag: 1, Control: fence.Control, Head: fence.Head})
	over.Effects()
	require.NoError(t, over.Read(now, first))
	require.Empty(t, over.Effects())
}

func TestState_snapshotSaysTheSame(t *testing.T) {
	s := NewState()
	for i := range 1200 {
		key := keyText(fmt.Sprintf("k%d\xff", i))
		require.NoError(t, s.Apply(&Record{Kind: kindBlock, Epoch: 9, N: uint64(3*i + 1), Key: key, Away: &away{Head: fmt.Sprint("h", i)}}))
		require.NoError(t, s.Apply(&Record{Kind: kindPark, Epoch: 9, N: uint64(3*i + 2), Key: key, Pair: 1 + i%3}))
		if i%2 == 0 {
			require.NoError(t, s.Apply(&Record{Kind: kindDone, Epoch: 9, N: uint64(3*i + 3), Key: key, Head: fmt.Sprint("h", i)}))
		}
	}
	require.NoError(t, s.Apply(&Record{Kind: kindTurn, Epoch: 9, N: 1 << 20, Pair: 2, Side: 1, Turn: Name{9, 1}}))
	records := s.Snapshot(true)
	require.Len(t, records, 3)
	read := NewState()
	for i, r := range slices.Concat(records[:2], records) {
		if i == 2 {
			require.Empty(t, read.keys, "half a snapshot counts for nothing")
			read = NewState()
		}
		decoded, err := Decode(r.Encode())
		require.NoError(t, err)
		require.NoError(t, read.Apply(decoded))
	}
	require.Equal(t, text(s), text(read))
	require.Equal(t, s.bytes, read.bytes)
	require.Equal(t, *s.pairs[2], *read.pairs[2])
}

// text returns all that a state says.
func text(s *State) string {
	var b strings.Builder
	for _, r := range s.Snapshot(true) {
		r.N = 0
		b.Write(r.Encode())
	}
	return b.String()
}

func TestState_countsEachRecordOnce(t *testing.T) {
	s := NewState()
	turn := &Record{Kind: kindTurn, Epoch: 9, N: 1, Pair: 1, Side: 1, Turn: Name{9, 1}}
	back := &Record{Kind: kindTurn, Epoch: 9, N: 2, Pair: 1, Side: 0, Turn: Name{9, 2}}
	for _, r := range []*Record{turn, back, turn} {
		require.NoError(t, s.Apply(r))
	}
	require.Equal(t, Side(0), s.pair(1).Side)
}

// A message that blocks a key may have returned when the log did not have its record.
func TestState_releasesAllKeysIfAPartOfTheLogIsMissing(t *testing.T) {
	s := NewState()
	for _, r := range []*Record{
		{Kind: kindBlock, Epoch: 5, N: 2, Key: "delayed", Away: &away{Head: "5-1"}},
		{Kind: kindBlock, Epoch: 5, N: 3, Key: "poisoned", Away: &away{Head: "5-2", Poison: true}},
		{Kind: kindPark, Epoch: 5, N: 4, Key: "poisoned", Pair: 1},
	} {
		require.NoError(t, s.Apply(r))
	}
	require.Equal(t, []keyRecord{{Key: "poisoned", Pair: 1, Since: 5, Away: []*away{}}}, s.Snapshot(true)[0].Keys)
}

// If the log is deleted while a process leads, its later records remain, and one may say that everything parked was handed out. It
// was for the writer, which knew of keys that the reader does not know.
func TestState_isLostIfTheRecordsBeforeAreMissing(t *testing.T) {
	snapshot := &Record{Kind: kindSnapshot, Epoch: 5, N: 1, Parts: 1, Keys: []keyRecord{{Key: "k", Pair: 1, Since: 5}}}
	swept := &Record{Kind: kindSwept, Epoch: 7, N: 3}
	for name, c := range map[string]struct {
		log  []*Record
		lost bool
	}{
		"whole log":                            {[]*Record{{Kind: kindEpoch, Epoch: 7, Writer: "w"}, {Kind: kindSnapshot, Epoch: 7, N: 1, Parts: 1, Lost: true}, swept}, false},
		"nothing before it":                    {[]*Record{swept}, true},
		"only the snapshot of another epoch":   {[]*Record{snapshot, swept}, true},
		"a record of another epoch after that": {[]*Record{snapshot, {Kind: kindOpen, Epoch: 7, N: 2, Key: "k"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState()
			for _, r := range c.log {
				require.NoError(t, s.Apply(r))
			}
			require.Equal(t, c.lost, s.Snapshot(true)[0].Lost)
		})
	}
}

func TestName_hasOneSpelling(t *testing.T) {
	name, ok := ParseName("12-345")
	require.True(t, ok)
	require.Equal(t, Name{12, 345}, name)
	for _, text := range []string{"", "-", "1", "1-", "-1", "01-2", "1-2 ", "+1-2", "1-2-3", "99999999999999999999-1", "281474976710657-1"} {
		_, ok := ParseName(text)
		require.False(t, ok, text)
	}
}

// FuzzDecode reads arbitrary records into a state: nothing of it may panic, and a snapshot of the state is read back.
func FuzzDecode(f *testing.F) {
	for _, r := range []*Record{
		{Kind: kindEpoch, Epoch: 5, Writer: "w"},
		{Kind: kindBlock, Epoch: 5, N: 1, Key: "k", Away: &away{Head: "5-1", Digest: printOf(3), Poison: true}},
		{Kind: kindPark, Epoch: 5, N: 2, Key: "k", Pair: 1},
		{Kind: kindTurn, Epoch: 5, N: 3, Pair: 1, Side: 1, Turn: Name{5, 9}},
		{Kind: kindSnapshot, Epoch: 5, N: 4, Parts: 1, Keys: []keyRecord{{Key: "k", Pair: 2}}, Done: []string{"5-1"}, Pairs: []pairState{{}}},
	} {
		f.Add(r.Encode(), r.Encode())
	}
	f.Add([]byte(`{"kind":"snap","epoch":1,"n":1,"parts":1,"keys":[{"key":"a","away":[null]}]}`), []byte("{}"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := NewState()
		for _, body := range [][]byte{first, second} {
			if r, err := Decode(body); err == nil {
				_ = s.Apply(r)
			}
		}
		if s.epoch == 0 {
			return
		}
		read := NewState()
		for _, r := range s.Snapshot(true) {
			decoded, err := Decode(r.Encode())
			require.NoError(t, err)
			require.NoError(t, read.Apply(decoded))
		}
		require.Equal(t, text(s), text(read))
		over := NewTakeover(testConfig(), NewMemory(), "me", time.Unix(100, 0))
		over.state = read
		m := New(over, map[Source]int{{1, 0}: 1}, time.Unix(100, 0))
		m.Stats()
	})
}

func TestPrint_isTextInTheLog(t *testing.T) {
	r := &Record{Kind: kindBlock, Epoch: 5, N: 1, Key: "k", Away: &away{Head: "5-1", Digest: printOf(3)}}
	require.Contains(t, string(r.Encode()), `"digest":"00000000000000030000000000000000"`)
	read, err := Decode(r.Encode())
	require.NoError(t, err)
	require.Equal(t, printOf(3), read.Away.Digest)
	read, err = Decode([]byte(`{"kind":"block","epoch":5,"n":1,"key":"k","away":{"head":"5-1","print":"3"}}`)) // before there were digests
	require.NoError(t, err)
	require.Equal(t, Print{}, read.Away.Digest)
	for _, digest := range []string{"", "00", "zz000000000000000000000000000000", "0000000000000000000000000000000000"} {
		_, err := Decode([]byte(`{"kind":"block","epoch":5,"n":1,"key":"k","away":{"head":"5-1","digest":"` + digest + `"}}`))
		require.Error(t, err, digest)
	}
}
