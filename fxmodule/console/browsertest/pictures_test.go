package browsertest

import (
	"context"
	"fmt"
	"math"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

// TestPictures takes the pictures of the documents, in docs/images, after a minute of traffic.
func TestPictures(t *testing.T) {
	if os.Getenv("LEAT_TEST_SCREENSHOTS") == "" {
		t.Skip("LEAT_TEST_SCREENSHOTS names no directory")
	}
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	s.fill(t)
	queue := s.Transport().PoisonQueue("shop.charge")
	all, err := queue.List(t.Context(), "", 100)
	require.NoError(t, err)
	for _, m := range all {
		if strings.Contains(m.Fault.Text, "script") {
			_, err = queue.Drop(t.Context(), m.ID)
			require.NoError(t, err)
		}
	}
	b.do(chromedp.EmulateViewport(1120, 800), chromedp.Navigate(s.url)) // the open page takes samples
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for n := 3000; ctx.Err() == nil; n++ {
		for range int(6 + 5*math.Sin(float64(n)/40)) {
			_ = s.Publish(ctx, OrderPlaced{Order: fmt.Sprint("o-", n), Total: 20, Items: []string{"kettle"}}, bus.WithKey(fmt.Sprint("o-", n)))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	b.shoot("console-overview")
	b.dark(true)
	b.do(chromedp.Navigate(s.url + "group?group=shop.charge&class=card+declined"))
	b.sees("11 messages match", "Live")
	b.shoot("console-group")
}
