package testenv

import (
	"time"
	_ "unsafe" // for go:linkname

	_ "github.com/ThreeDotsLabs/watermill/pubsub/tests" // has the variable
)

//go:linkname watermillTimeout github.com/ThreeDotsLabs/watermill/pubsub/tests.defaultTimeout
var watermillTimeout time.Duration //nolint:gochecknoglobals // it is Watermill's

// PatientWatermill makes Watermill's Pub/Sub tests wait up to a minute for each message. By themselves they wait 15 s, which is
// too short on a busy machine. Call it before they run.
func PatientWatermill() { watermillTimeout = time.Minute }
