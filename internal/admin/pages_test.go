package admin_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/transports/memory"
)

// largeQueue has messages of 1 MiB, and counts how many bytes one List returns at most.
type largeQueue struct {
	driver.PoisonQueue
	n, most int
}

func (q *largeQueue) List(_ context.Context, after string, limit int) (list []driver.PoisonedMessage, _ error) {
	at := 0
	if after != "" {
		at, _ = strconv.Atoi(after)
	}
	payload := bytes.Repeat([]byte{'x'}, 1<<20)
	for i := at + 1; i <= q.n && len(list) < limit; i++ {
		msg := message.NewMessage(fmt.Sprint(i), payload)
		list = append(list, driver.PoisonedMessage{ID: fmt.Sprint(i), Message: msg})
	}
	q.most = max(q.most, len(list)<<20)
	return list, nil
}

type largeTransport struct {
	*memory.Transport
	queue *largeQueue
}

func (t largeTransport) PoisonQueue(string) driver.PoisonQueue { return t.queue }

func (largeTransport) Groups(context.Context) ([]driver.GroupInfo, error) {
	return []driver.GroupInfo{{Name: "shop.mail"}}, nil
}

func TestPoisonPages_areBoundedInBytes(t *testing.T) {
	transport := largeTransport{memory.New(memory.Config{}), &largeQueue{n: 100}}
	b, err := bus.New(transport, bus.Config{Service: "shop", Logger: quiet()})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()

	n := 0
	require.NoError(t, admin.Each(t.Context(), transport.queue, "", func(driver.PoisonedMessage) error {
		n++
		return nil
	}))
	require.Equal(t, 100, n)
	require.LessOrEqual(t, transport.queue.most, 16<<20)

	transport.queue.most = 0
	handler, after, sent := admin.Endpoint{Bus: b}.Handler(), "", 0
	for {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/poison/shop.mail?limit=10000&after="+after, nil)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code)
		require.LessOrEqual(t, w.Body.Len(), 17<<20)
		here := strings.Count(w.Body.String(), "\n")
		if here == 0 {
			break
		}
		sent += here
		after = strconv.Itoa(sent)
	}
	require.Equal(t, 100, sent)
	require.LessOrEqual(t, transport.queue.most, 16<<20)
}
