package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// connect has the flags of every command that works on the message system.
type connect struct {
	Wait time.Duration `default:"10s" help:"How long to wait for the message system."`
}

// A session has an open message system.
type session struct {
	*Env
	driver.Transport
	wait time.Duration
}

func (c connect) open(ctx context.Context, e *Env) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	defer c.patience(e)()
	t, err := e.Open(ctx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w after %s; is it running there?", err, c.Wait)
		}
		return nil, err
	}
	return &session{Env: e, Transport: t, wait: c.Wait}, nil
}

// silence is after how long without a response a command reports on a terminal that it waits.
const silence = 2 * time.Second

// patience reports on a terminal that the command waits for the message system, unless answered is called within silence.
func (c connect) patience(e *Env) (answered func()) {
	if !isTerminal(e.Stderr) {
		return func() {}
	}
	notice := time.AfterFunc(silence, func() {
		fmt.Fprintf(e.Stderr, "no answer yet; waiting up to %s for it (--wait)\n", c.Wait)
	})
	return func() { notice.Stop() }
}

func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), s.wait)
	defer cancel()
	if s.Env.Close != nil {
		_ = s.Env.Close(ctx)
		return
	}
	_ = s.Transport.Close(ctx) // everything is confirmed by now
}

// soon returns a context with a timeout for quick calls.
func (s *session) soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.wait)
}

// explain adds the message system and a hint to an error.
func (s *session) explain(err error) error {
	switch {
	case err == nil, errors.Is(err, errQuiet):
		return err
	case isUsage(err):
		return err
	case errors.Is(err, errInterrupted), errors.Is(err, errNoSuch), errors.Is(err, driver.ErrConsumed):
		return fmt.Errorf("%s: %w", s.Where, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", s.Where, errInterrupted)
	}
	if knows, ok := errors.AsType[admin.Fixer](err); ok {
		return fmt.Errorf("%s: %w; %s", s.Where, err, knows.Fix())
	}
	return fmt.Errorf("%s: %w; run %s doctor to find the cause", s.Where, err, s.Program)
}

var errInterrupted = errors.New("interrupted")

func isUsage(err error) bool {
	_, wrongName := errors.AsType[*admin.UnknownGroupError](err)
	_, wrong := errors.AsType[*UsageError](err)
	return wrong || wrongName
}

var errNoInspector = errors.New("this message system can't list its groups; give one by --group")

func (s *session) inspector() (driver.Inspector, error) {
	inspector, ok := s.Transport.(driver.Inspector)
	if !ok {
		return nil, errNoInspector
	}
	return inspector, nil
}

// groups returns the groups with these names, or all.
func (s *session) groups(ctx context.Context, names ...string) ([]driver.GroupInfo, error) {
	inspector, err := s.inspector()
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.soon(ctx)
	defer cancel()
	return admin.FindGroups(ctx, inspector, names...)
}

// with opens the message system, calls do and closes it.
func (c connect) with(ctx context.Context, e *Env, do func(*session) error) error {
	s, err := c.open(ctx, e)
	switch {
	case isUsage(err):
		return err
	case err != nil:
		return fmt.Errorf("%s: %w", e.Where, err)
	}
	defer s.close()
	return s.explain(do(s))
}
