package middleware_test

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
)

// keyRow is a row of the table of keys in the documents.
var keyRow = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [^|]+ \\|$")

// documentedKeys returns the keys that a page lists.
func documentedKeys(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", page))
	require.NoError(t, err)
	var keys []string
	for _, match := range keyRow.FindAllStringSubmatch(string(text), -1) {
		keys = append(keys, match[1])
	}
	return slices.Sorted(slices.Values(keys))
}

// keyLog is a slog.Handler that notes the keys and the texts of lines.
type keyLog struct {
	mu          sync.Mutex
	keys, texts map[string]bool
}

func (*keyLog) Enabled(context.Context, slog.Level) bool { return true }
func (k *keyLog) Handle(_ context.Context, r slog.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.texts[r.Message] = true
	r.Attrs(func(a slog.Attr) bool {
		k.keys[a.Key] = true
		return true
	})
	return nil
}

func (k *keyLog) WithAttrs([]slog.Attr) slog.Handler { panic("a line has attributes of its own only") }
func (k *keyLog) WithGroup(string) slog.Handler      { panic("keys have no groups") }

type brokenObserver struct{ bus.Observer }

func (brokenObserver) Published(context.Context, bus.Publication) { panic("broken") }

func TestLogKeys_ofAFailingRunAreDocumented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := &keyLog{keys: map[string]bool{}, texts: map[string]bool{}}
		logger := slog.New(lines)
		var mended atomic.Bool
		fails := map[string]error{"bad": bus.Permanent(errHandler), "dropped": bus.Discard(errHandler), "late": errHandler}
		h := bustest.NewWith(t, bustest.Config{
			Middleware: middleware.Config{Store: awayStore{}, Dedup: middleware.DedupConfig{Logger: logger}},
			Bus: bus.Config{Logger: logger, Breaker: bus.BreakerPolicy{Messages: 10}, Observers: []bus.Observer{
				middleware.Log(logger), brokenObserver{middleware.Log(logger)},
			}},
		}, handlers.Func("ledger", func(_ context.Context, e keyed) error {
			if e.Kind == "panics" {
				panic("out of range")
			}
			if mended.Load() {
				return nil
			}
			return fails[e.Kind]
		}, handlers.Concurrency(16)))
		for _, kind := range []string{"good", "bad", "dropped", "late", "panics"} {
			h.Publish(keyed{kind})
		}
		h.WaitIdle()
		for range 200 { // nearly everything fails: the group pauses
			h.Publish(keyed{"late"})
		}
		time.Sleep(time.Minute)
		require.NoError(t, h.Bus().PublishMessages(t.Context(), unwanted()))
		mended.Store(true)
		time.Sleep(time.Hour)
		h.WaitIdle()

		for _, text := range []string{"leat: poisoned", "leat: discarded", "leat: redelivered", "leat: handled", "leat: degraded", "leat: group paused", "leat: group resumed"} {
			require.Contains(t, lines.texts, text)
		}
		for _, key := range []string{"group", "topic", "type", "message_id", "key", "correlation_id", "attempt", "duration", "error", "stack", "observer"} {
			require.Contains(t, lines.keys, key)
		}
		require.Subset(t, documentedKeys(t, "docs/monitoring.md"), slices.Collect(maps.Keys(lines.keys)))
	})
}

type keyed struct{ Kind string }

func (keyed) EventType() (string, int) { return "order.placed", 1 }
func (e keyed) PartitionKey() string   { return e.Kind }

func unwanted() *message.Message {
	msg := message.NewMessage("id", nil)
	msg.Metadata["ce_type"] = "nobody.asks.v1"
	return msg
}

// awayStore is a dedup store that can't be reached.
type awayStore struct{ middleware.Store }

func (awayStore) Claim(context.Context, string, time.Duration) (middleware.Claim, error) {
	return middleware.Claim{}, errors.New("away")
}
func (awayStore) Release(context.Context, middleware.Claim) error { return errors.New("away") }

// Every line in the sources of these packages has a constant text, and keys of the list; and every key of the list is used.
func TestLogKeys_inTheSourcesAreThoseOfTheDocuments(t *testing.T) {
	used := make(map[string]bool)
	for _, dir := range []string{"bus", "bus/driver", "middleware", "middleware/prommetrics", "middleware/redisstore", "handlers", "fxmodule"} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			require.NoError(t, err)
			ast.Inspect(parsed, func(n ast.Node) bool {
				if f, ok := n.(*ast.FuncDecl); ok && f.Name.Name == "LogValue" { // the value of one attribute
					return false
				}
				if call, ok := n.(*ast.CallExpr); ok {
					for _, key := range keysOf(call) {
						used[key] = true
					}
				}
				return true
			})
		}
	}
	for _, page := range []string{"docs/monitoring.md", "docs/zh-CN/monitoring.md"} {
		require.Equal(t, slices.Sorted(maps.Keys(used)), documentedKeys(t, page), page)
	}
}

// keysOf returns the keys that a call logs with: logger.Warn("leat: …", "key", value…), slog.String("key", value).
func keysOf(call *ast.CallExpr) (keys []string) {
	name := ""
	switch fun := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = fun.Sel.Name
	case *ast.Ident:
		name = fun.Name
	}
	args := call.Args
	if level, ok := strings.CutSuffix(name, "Context"); ok && len(args) > 0 {
		name, args = level, args[1:]
	}
	if len(args) == 0 {
		return nil
	}
	first, ok := literal(args[0])
	switch {
	case !ok:
		return nil
	case slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, name) && strings.HasPrefix(first, "leat: "):
		for i := 1; i < len(args); i += 2 {
			key, _ := literal(args[i])
			keys = append(keys, key)
		}
		return keys
	case isSlog(call.Fun) || name == "text":
		return []string{first}
	}
	return nil
}

// isSlog reports whether a call makes an attribute: slog.String and the like.
func isSlog(fun ast.Expr) bool {
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "slog"
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}
