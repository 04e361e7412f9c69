package prommetrics_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware/prommetrics"
)

func TestBreakerChanges(t *testing.T) {
	registry := prometheus.NewRegistry()
	o, err := prommetrics.New(registry)
	require.NoError(t, err)
	expect := func(want string) {
		t.Helper()
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(want), "leat_group_paused", "leat_breaker_changes_total"))
	}
	o.BreakerChanged(bus.BreakerChange{Group: "shop.ledger", State: bus.BreakerOpen, Err: errors.New("away"), Wait: time.Second})
	o.BreakerChanged(bus.BreakerChange{Group: "shop.ledger", State: bus.BreakerHalfOpen})
	expect(`
# HELP leat_breaker_changes_total Changes of circuit breakers, by new state: open, half-open, closed, or held by an operator.
# TYPE leat_breaker_changes_total counter
leat_breaker_changes_total{group="shop.ledger",state="half-open"} 1
leat_breaker_changes_total{group="shop.ledger",state="open"} 1
# HELP leat_group_paused 1 while the group is paused by its circuit breaker or an operator.
# TYPE leat_group_paused gauge
leat_group_paused{group="shop.ledger"} 1
`)
	o.BreakerChanged(bus.BreakerChange{Group: "shop.ledger", State: bus.BreakerClosed})
	expect(`
# HELP leat_breaker_changes_total Changes of circuit breakers, by new state: open, half-open, closed, or held by an operator.
# TYPE leat_breaker_changes_total counter
leat_breaker_changes_total{group="shop.ledger",state="closed"} 1
leat_breaker_changes_total{group="shop.ledger",state="half-open"} 1
leat_breaker_changes_total{group="shop.ledger",state="open"} 1
# HELP leat_group_paused 1 while the group is paused by its circuit breaker or an operator.
# TYPE leat_group_paused gauge
leat_group_paused{group="shop.ledger"} 0
`)
}
