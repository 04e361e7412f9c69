package ring_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/internal/ring"
)

// The model is a slice.
func TestRing_isAFirstInFirstOutQueue(t *testing.T) {
	var r ring.Ring[int]
	var model []int
	for i := range 100_000 {
		switch n := rand.IntN(8); {
		case n < 4 && i%20_000 < 12_000:
			r.PushBack(i)
			model = append(model, i)
		case n == 4:
			r.PushFront(i)
			model = append([]int{i}, model...)
		case n == 5 && len(model) > 1:
			r.Swap(0, len(model)-1)
			model[0], model[len(model)-1] = model[len(model)-1], model[0]
		default:
			v, ok := r.PopFront()
			require.Equal(t, len(model) > 0, ok)
			if ok {
				require.Equal(t, model[0], v)
				model = model[1:]
			}
		}
		require.Equal(t, len(model), r.Len())
		if len(model) > 0 {
			first, _ := r.Front()
			require.Equal(t, model[0], first)
			k := rand.IntN(len(model))
			require.Equal(t, model[k], r.Get(k))
		}
	}
	var all []int
	r.Each(func(v int) { all = append(all, v) })
	require.Len(t, all, len(model))
}
