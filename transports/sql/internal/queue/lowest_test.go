package queue

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLowest_anIdleClaimWalksOverDeletedRowsSeldom checks that few claims start at the first row. While a snapshot keeps deleted
// rows, such a claim takes time in proportion to their number.
func TestLowest_anIdleClaimWalksOverDeletedRowsSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, took := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
			var l lowest
			whole := 0
			for id := range int64(600) { // a message now and then, for a minute
				began := time.Now()
				from := l.from(began)
				if from == 0 {
					whole++
					time.Sleep(took)
				}
				l.taken(began, from, []record{{id: id + 1}}, true)
				time.Sleep(100 * time.Millisecond)
			}
			if took < cheapWhole {
				require.Equal(t, 600, whole)
			} else {
				require.InDelta(t, 30, whole, 10, "every two seconds")
			}
			l.begin()
			require.Zero(t, l.from(time.Now()), "what came back is taken at once")
		}
	})
}
