package admin_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// unlisted is a message system that can't list its groups.
type unlisted struct {
	driver.Inspector
	err error
}

func (u unlisted) Groups(context.Context) ([]driver.GroupInfo, error) { return nil, u.err }
func (unlisted) Diagnose(context.Context) []driver.Finding {
	return []driver.Finding{{Check: "management API", Text: "not asked: nothing listens there; enable it"}}
}

type fixable struct{ error }

func (fixable) Fix() string { return "enable it" }

// What a transport needs only for operators, and has reported, is no fault.
func TestDiagnose_groupsThatCanNotBeListed(t *testing.T) {
	findings := admin.Diagnose(t.Context(), unlisted{err: fixable{errors.New("nothing listens there")}})
	require.Len(t, findings, 2)
	require.Equal(t, driver.Finding{Check: "groups", Text: "not listed, so neither their consumers nor what waits in them is checked"}, findings[1])

	broken := errors.New("connection reset")
	findings = admin.Diagnose(t.Context(), unlisted{err: broken})
	require.ErrorIs(t, findings[1].Err, broken)
	require.NotEmpty(t, findings[1].Fix)
}
