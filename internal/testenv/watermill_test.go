package testenv

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPatientWatermill_changesWatermillsTimeout(t *testing.T) {
	before := watermillTimeout
	defer func() { watermillTimeout = before }()
	require.GreaterOrEqual(t, before, 15*time.Second, "Watermill's variable has another name now")
	PatientWatermill()
	require.Equal(t, time.Minute, watermillTimeout)
}
