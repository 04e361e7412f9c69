package prommetrics_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
)

// away is a dedup store that can't be reached.
type away struct{ middleware.Store }

var errAway = errors.New("the store is away")

func (away) Claim(context.Context, string, time.Duration) (middleware.Claim, error) {
	return middleware.Claim{}, errAway
}
func (away) Release(context.Context, middleware.Claim) error             { return errAway }
func (away) Done(context.Context, middleware.Claim, time.Duration) error { return errAway }

func TestHealth_countsFaultsOfTheDedupStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		h := bustest.NewWith(t, bustest.Config{Middleware: middleware.Config{Store: away{}}},
			handlers.Func("ledger", func(context.Context, orderPaid) error { return nil }))
		require.NoError(t, prommetrics.Health(registry, h.Bus()))
		h.Publish(orderPaid{"1"})
		h.WaitIdle()
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_dedup_faults_total Calls of the dedup store that failed.
# TYPE leat_dedup_faults_total counter
leat_dedup_faults_total{group="test.ledger"} 1
`), "leat_dedup_faults_total"))
	})
}
