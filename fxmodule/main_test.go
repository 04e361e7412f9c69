package fxmodule_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/transports/memory"
)

// captured makes the default logger write to a buffer during a test.
func captured(t *testing.T) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &log
}

func TestMain_saysInOneLineWhyTheStartFails(t *testing.T) {
	for name, c := range map[string]struct {
		option fx.Option
		want   string
	}{
		"a bad URL":      {fx.Decorate(func(c fxmodule.Config) fxmodule.Config { c.URL = "rabbit://x"; return c }), "no transport for"},
		"a bad handler":  {fxmodule.HandleFunc(func() (bus.Handler, error) { return bus.Handler{}, errors.New("no printer") }), "no printer"},
		"a missing type": {fx.Invoke(func(*http.Server) {}), "http.Server"},
		"a failing start hook": {fx.Invoke(func(lc fx.Lifecycle) {
			lc.Append(fx.StartHook(func() error { return errors.New("the port is taken") }))
		}), "the port is taken"},
	} {
		t.Run(name, func(t *testing.T) {
			log := captured(t)
			require.Equal(t, 1, fxmodule.RunMain(fxmodule.Module, c.option))
			require.Equal(t, 1, strings.Count(log.String(), "level=ERROR"), log.String())
			require.LessOrEqual(t, strings.Count(log.String(), "\n"), 2, log.String())
			require.Contains(t, log.String(), c.want)
		})
	}
}

func TestMain_exitsWithTheStatusOfTheShutdown(t *testing.T) {
	log := captured(t)
	require.Equal(t, 3, fxmodule.RunMain(fxmodule.Module, fx.Invoke(func(lc fx.Lifecycle, s fx.Shutdowner) {
		lc.Append(fx.StartHook(func() error { return s.Shutdown(fx.ExitCode(3)) }))
	})))
	require.NotContains(t, log.String(), "ERROR")
}

// The default drain timeout must fit: handlers get all of it.
func TestMain_leavesTimeForTheDrain(t *testing.T) {
	captured(t)
	deadlines := make(chan time.Time, 1)
	hook := fx.Invoke(func(lc fx.Lifecycle, s fx.Shutdowner) {
		lc.Append(fx.Hook{
			OnStart: func(context.Context) error { return s.Shutdown() },
			OnStop: func(ctx context.Context) error {
				deadline, _ := ctx.Deadline()
				deadlines <- deadline
				return nil
			},
		})
	})
	began := time.Now()
	require.Zero(t, fxmodule.RunMain(fxmodule.Module, hook))
	require.Greater(t, (<-deadlines).Sub(began), 22*time.Second, "the drain timeout, and the time that handlers get to notice their cancellation")
	require.Zero(t, fxmodule.RunMain(fxmodule.Module, hook, fx.StopTimeout(10*time.Second)))
	require.Less(t, time.Until(<-deadlines), 10*time.Second, "an option of the application comes after")
}

// sick is a transport that has lost its connection.
type sick struct{ driver.Transport }

func (sick) Health() driver.TransportHealth {
	return driver.TransportHealth{Transport: "sick", Err: errors.New("no route"), Reconnects: 2}
}

func TestHealthHandler_answersProbes(t *testing.T) {
	var b *bus.Bus
	app := fxtest.New(t, quiet(), fxmodule.Module,
		fxmodule.UseTransport(func() driver.Transport { return sick{memory.New(memory.Config{})} }),
		fxmodule.Handle("mail", func(context.Context, orderPlaced) error { return nil }),
		fx.Decorate(func(c fxmodule.Config) fxmodule.Config { c.Service = "shop"; return c }),
		fx.Populate(&b))
	h := fxmodule.HealthHandler(b)
	probe := func(path string) (int, map[string]any) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		var body map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		return w.Code, body
	}
	status := func(path string) int { code, _ := probe(path); return code }

	require.Equal(t, http.StatusServiceUnavailable, status("/health/ready"), "it does not consume yet")
	require.Equal(t, http.StatusOK, status("/live"))
	app.RequireStart()
	code, body := probe("/ready")
	require.Equal(t, http.StatusOK, code, "a lost connection takes nothing out of traffic")
	require.Equal(t, map[string]any{
		"status": "ready",
		"groups": []any{map[string]any{
			"group": "shop.mail", "state": "degraded", "degraded": map[string]any{"transport": "no route"},
		}},
		"transport": map[string]any{"name": "sick", "connected": false, "error": "no route", "reconnects": 2.0, "unroutable": 0.0},
	}, body)
	app.RequireStop()
	require.Equal(t, http.StatusServiceUnavailable, status("/ready"))
	require.Equal(t, http.StatusServiceUnavailable, status("/live"))
	require.Equal(t, http.StatusOK, status("/health"))

	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/live", http.NoBody))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

// shout is a codec.
type shout struct{ bus.JSON }

func (shout) ContentType() string { return "application/x-shout" }

func TestUseCodec_replacesJSON(t *testing.T) {
	var b *bus.Bus
	app := fxtest.New(t, quiet(), fxmodule.Module, fxmodule.UseCodec(func() shout { return shout{} }), fx.Populate(&b))
	app.RequireStart()
	defer app.RequireStop()
	require.Equal(t, "application/x-shout", b.Encoder().Codec.ContentType())
}

// full is a transport that accepts nothing.
type full struct{ driver.Transport }

func (full) Publish(ctx context.Context, _ string, _ ...*message.Message) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestPublishTimeout_boundsAPublishWithoutADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := bus.New(full{memory.New(memory.Config{})}, bus.Config{Service: "shop", PublishTimeout: 5 * time.Second})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(t.Context())) }()
		began := time.Now()
		err = b.Publish(t.Context(), orderPlaced{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "publish timeout of 5s")
		require.Equal(t, 5*time.Second, time.Since(began))

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began = time.Now()
		require.Error(t, b.Publish(ctx, orderPlaced{}))
		require.Equal(t, time.Minute, time.Since(began), "a deadline of the caller's counts alone")

		ctx, stop := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		time.AfterFunc(time.Second, func() { stop(enough) })
		require.ErrorIs(t, b.Publish(ctx, orderPlaced{}), enough)
	})
}
