package middleware_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	watermill "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/redis/go-redis/v9"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
)

// Environment of the child process that is killed.
const (
	childDedup     = "LEAT_TEST_CHILD_DEDUP"     // whose: leat or watermill
	childNamespace = "LEAT_TEST_CHILD_NAMESPACE" // of its keys
)

// Both are long, because a busy machine may be slow.
const (
	childLease  = 10 * time.Minute
	childBudget = time.Minute
)

// setNX is the usual repository for Watermill's Deduplicator.
type setNX struct {
	client    *redis.Client
	namespace string
}

func (r setNX) IsDuplicate(ctx context.Context, key string) (bool, error) {
	fresh, err := r.client.SetNX(ctx, r.namespace+key, "1", time.Hour).Result() // as the articles do
	return !fresh, err
}

// dedupByName returns a dedup middleware on the test's Redis.
func dedupByName(t *testing.T, name, namespace string) message.HandlerMiddleware {
	t.Helper()
	url := testenv.Redis(t)
	if name == "watermill" {
		opts, err := redis.ParseURL(url)
		if err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(opts)
		t.Cleanup(func() { _ = client.Close() })
		d := &watermill.Deduplicator{
			KeyFactory: watermill.NewMessageHasherFromMetadataField(driver.HeaderID),
			Repository: setNX{client, namespace},
			Timeout:    time.Minute,
		}
		return d.Middleware
	}
	store, err := redisstore.Open(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return newDedupStep(store, middleware.DedupConfig{Namespace: namespace, Lease: childLease, Budget: childBudget}).middleware
}

// TestKilledChild is not a test: it is the process that the next one kills.
func TestKilledChild(t *testing.T) {
	name := os.Getenv(childDedup)
	if name == "" {
		return
	}
	msg := event("killed")
	deliveryOf(msg)
	_, err := dedupByName(t, name, os.Getenv(childNamespace))(func(*message.Message) ([]*message.Message, error) {
		_, _ = os.Stdout.WriteString("handling\n")
		<-t.Context().Done() // never
		return nil, nil
	})(msg)
	t.Fatalf("the handler came back: %v", err)
}

// killInMidHandler runs the child until it handles the message, and kills it with signal 9.
func killInMidHandler(t *testing.T, name, namespace string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), childDedup+"="+name, childNamespace+"="+namespace)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "handling" {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the child was not killed: %v", err)
	}
}

func TestDedup_handlesAKilledProcesssMessageAfterTheLease(t *testing.T) {
	opts, err := redis.ParseURL(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer client.Close()

	for _, tc := range []struct {
		name    string
		handled bool
	}{
		{"leat", true},
		{"watermill", false}, // marked before it was handled, it is taken for a duplicate: lost
	} {
		t.Run(tc.name, func(t *testing.T) {
			namespace := "leat:test:" + bus.NewID() + ":"
			// By name: among those of others it could take longer than a lease to look for them.
			key := namespace + map[string]string{"leat": "shop.pay:" + bus.Attach(event("killed")).Identity(), "watermill": "killed"}[tc.name]
			defer client.Unlink(context.Background(), key)
			killInMidHandler(t, tc.name, namespace)
			if n := client.Exists(t.Context(), key).Val(); n != 1 {
				t.Fatalf("the child left %d keys in Redis, want 1", n)
			}

			handled := false
			handler := dedupByName(t, tc.name, namespace)(func(*message.Message) ([]*message.Message, error) {
				handled = true
				return nil, nil
			})
			// The lease is over soon after a redelivery.
			redelivered := redeliverUntilAcked(t, handler, func() { client.PExpire(t.Context(), key, 500*time.Millisecond) })
			if handled != tc.handled {
				t.Errorf("handled: %t, want %t", handled, tc.handled)
			}
			t.Logf("handled: %t, after %d redeliveries", handled, redelivered)
			if tc.handled && redelivered == 0 {
				t.Error("the claim of the dead process did not hold; the test shows nothing")
			}
		})
	}
}

// redeliverUntilAcked redelivers a message until it is acked, as a transport does. It calls first at the first redelivery.
func redeliverUntilAcked(t *testing.T, handler message.HandlerFunc, first func()) (redelivered int) {
	t.Helper()
	timeout := time.After(3 * time.Minute)
	for {
		msg := event("killed")
		deliveryOf(msg)
		_, err := handler(msg)
		if err == nil {
			return redelivered
		}
		var r *bus.Redelivery
		if !errors.As(err, &r) {
			t.Fatal(err)
		}
		if redelivered++; redelivered == 1 {
			first()
		}
		select {
		case <-time.After(r.After):
		case <-timeout:
			t.Fatal("the message is never handled")
		}
	}
}
