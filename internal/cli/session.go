package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// connect is the flags of every command that works on the message system.
type connect struct {
	Wait time.Duration `default:"10s" help:"How long to wait for the message system."`
}

// session is an open message system.
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

// silence is how long somebody at a terminal waits for the message system without a word.
const silence = 2 * time.Second

// patience says on a terminal that the message system takes its time, until what it returns is called.
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
	_ = s.Transport.Close(ctx) // what is safe is safe by now
}

// soon bounds what should be quick.
func (s *session) soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.wait)
}

// explain says where it failed, and who knows more.
func (s *session) explain(err error) error {
	switch {
	case err == nil, errors.Is(err, errQuiet):
		return err
	case isUsage(err):
		return err
	case errors.Is(err, errInterrupted), errors.Is(err, errNoSuch):
		return fmt.Errorf("%s: %w", s.Where, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", s.Where, errInterrupted)
	}
	var knows interface{ Fix() string }
	if errors.As(err, &knows) {
		return fmt.Errorf("%s: %w; %s", s.Where, err, knows.Fix())
	}
	return fmt.Errorf("%s: %w; %s doctor looks for the cause", s.Where, err, s.Program)
}

var errInterrupted = errors.New("interrupted")

func isUsage(err error) bool {
	_, wrongName := errors.AsType[*admin.UnknownGroupError](err)
	_, wrong := errors.AsType[*UsageError](err)
	return wrong || wrongName
}

var errNoInspector = errors.New("this message system shows operators nothing but poison queues; name the group with --group")

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

// with opens the message system for a command.
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
