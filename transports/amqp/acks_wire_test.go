package amqp

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// frames is a channel that writes down what it is told.
type frames []string

func (f *frames) Ack(tag uint64, multiple bool) error {
	what := "ack"
	if multiple {
		what = "ack up to"
	}
	*f = append(*f, fmt.Sprintf("%s %d", what, tag))
	return nil
}

func (f *frames) Nack(tag uint64, _, _ bool) error {
	*f = append(*f, fmt.Sprintf("nack %d", tag))
	return nil
}

func (f *frames) since() []string {
	synctest.Wait()
	all := *f
	*f = nil
	return all
}

func ackFrom(a *acks, from, to uint64) {
	for tag := from; tag <= to; tag++ {
		a.ack(tag)
	}
}

// What is settled beyond a message that is out waits for it, for a moment.
func TestAcks_ofMessagesBehindOneThatIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent frames
		a := newAcks(&sent, 10, 50)
		defer a.end()
		ackFrom(a, 1, 3)
		ackFrom(a, 5, 8)
		<-time.After(ackInterval)
		require.Equal(t, []string{"ack up to 3"}, sent.since())
		a.ack(4)
		<-time.After(ackInterval)
		require.Equal(t, []string{"ack up to 8"}, sent.since(), "one frame does for all")

		ackFrom(a, 10, 12)
		<-time.After((ackPatience + 1) * ackInterval)
		require.Equal(t, []string{"ack 10", "ack 11", "ack 12"}, sent.since(), "it takes too long")
		ackFrom(a, 13, 14)
		<-time.After(ackInterval)
		require.Equal(t, []string{"ack 13", "ack 14"}, sent.since(), "nobody waits for it any more")
		a.ack(9)
		<-time.After(ackInterval)
		require.Equal(t, []string{"ack up to 9"}, sent.since())

		a.expect(15)
		ackFrom(a, 16, 17)
		<-time.After((ackPatience + 2) * ackInterval)
		require.Empty(t, sent.since(), "it is acked any moment")
		ackFrom(a, 18, 65)
		<-time.After(ackInterval)
		require.Len(t, sent.since(), 50, "the broker must go on sending")
		a.ack(15)
		a.end()
		require.Equal(t, []string{"ack up to 15"}, sent.since())
	})
}

// A channel with several consumers hands out messages before others that came earlier. Those are not
// acked along with them.
func TestAcks_ofMessagesThatWereNotSeenYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent frames
		a := newAcks(&sent, 1, 50)
		defer a.end()
		a.ack(2)
		<-time.After((ackPatience + 1) * ackInterval)
		require.Equal(t, []string{"ack 2"}, sent.since())
		a.requeue(3)
		ackFrom(a, 4, 200)
		a.ack(1)
		a.end()
		require.NotContains(t, sent.since(), "ack 3")
		require.Equal(t, uint64(201), a.settled.firstMissing())
	})
}
