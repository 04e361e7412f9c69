package browsertest

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// patience bounds one step.
const patience = 2 * time.Minute

// browser is a page of Chromium, and what went wrong in it.
type browser struct {
	ctx context.Context
	t   *testing.T

	mu      sync.Mutex
	faults  []string
	foreign []string
}

// open starts Chromium, or skips the test if there is none.
func open(t *testing.T, host string) *browser {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium is installed: apt-get install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(patience))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{ctx: ctx, t: t}
	console, requests := chromedp.Console(ctx), chromedp.Events(ctx, network.RequestWillBeSent)
	go func() {
		for m, err := range console { // violations of the content security policy, too
			if err != nil {
				return
			}
			b.mu.Lock()
			b.faults = append(b.faults, string(m.Type)+": "+m.Text+" "+m.URL)
			b.mu.Unlock()
		}
	}()
	go func() {
		for e, err := range requests {
			if err != nil {
				return
			}
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != host && u.Scheme != "data" {
				b.mu.Lock()
				b.foreign = append(b.foreign, e.Request.URL)
				b.mu.Unlock()
			}
		}
	}()
	require.NoError(t, chromedp.Do(ctx, func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, network.Enable, network.EnableParams{})
		return chromedp.Void{}, err
	}, chromedp.EmulateViewport(1280, 900)))
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, actions...))
}

// get returns what an action returns.
func get[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	require.NoError(b.t, err)
	return value
}

// sees waits until the page has a text.
func (b *browser) sees(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		require.Eventually(b.t, func() bool {
			ctx, cancel := context.WithTimeout(b.ctx, patience)
			defer cancel()
			body, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body?.innerText ?? ""`))
			return err == nil && strings.Contains(body, text) // it fails while the browser leaves a page
		}, patience, 50*time.Millisecond, "%s is not there", text)
	}
}

// seesPublished publishes an event until the page shows it: a tail begins shortly after its connection.
func (b *browser) seesPublished(s *shop, name string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		require.NoError(b.t, s.Publish(b.t.Context(), InvoiceIssued{name}))
		return strings.Contains(evaluate[string](b, "document.body.innerText"), name)
	}, patience, 200*time.Millisecond)
}

// evaluate returns the value of an expression.
func evaluate[T any](b *browser, expression string) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T](expression))
}

// shoot takes a picture if the tests are asked for pictures.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("LEAT_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), get(b, chromedp.FullScreenshot(100)), 0o600))
}

func (b *browser) dark(on bool) {
	scheme := "light"
	if on {
		scheme = "dark"
	}
	b.do(func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return chromedp.Void{}, err
	})
}

// click clicks a link or a button by its text.
func (b *browser) click(text string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.Search(`//main//*[self::a or self::button][normalize-space()="`+text+`"]`), chromedp.NodeVisible))
}

func TestConsole_inABrowser(t *testing.T) {
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	s.fill(t)

	// List.
	b.do(chromedp.Navigate(s.url))
	b.sees("Overview", "shop.charge", "paused", "need attention", "Time, p50 / p99", "Live")
	b.shoot("overview-light")
	b.click("shop.charge")
	b.sees("card declined", "15 messages", "Oldest message", "Time of a delivery, here", "p99", "Live")
	b.shoot("group-light")

	// Filter.
	b.do(chromedp.SetValue(chromedp.CSS(`input[name=class]`), "card declined"))
	b.click("Filter")
	b.sees("11 messages match")

	// Open.
	b.do(chromedp.Click(chromedp.CSS("#messages ~ form tbody th a")))
	b.sees("Story", "Poisoned", `"total": 250`)
	b.shoot("message-light")
	b.do(chromedp.Navigate(s.url + "group?group=shop.charge&text=hostile"))
	b.sees("1 message matches", "<script>")
	b.do(chromedp.Click(chromedp.CSS("#messages ~ form tbody th a")))
	b.sees("Story", "<script>")

	// Find an order among the poisoned messages of all groups.
	b.do(chromedp.Navigate(s.url+"find"), chromedp.SetValue(chromedp.CSS(`input[name=find]`), "o-2007"))
	b.click("Find")
	b.sees("1 message", "order o-2007: card declined")

	// Dry run and replay.
	b.do(chromedp.Navigate(s.url + "group?group=shop.charge&class=card+declined"))
	b.click("Dry run…")
	b.sees("Dry run 11 messages?")
	b.click("Try them")
	b.sees("0 of 11 would now succeed")
	s.repaired.Store(true)
	b.click("Back to the group")
	b.do(chromedp.SetValue(chromedp.CSS(`input[name=class]`), "card declined"))
	b.click("Filter")
	b.sees("11 messages match")
	b.do(chromedp.Click(chromedp.CSS(`input[name=id]`)))
	b.click("Replay…")
	b.sees("Replay 1 message?")
	b.click("Replay them")
	b.sees("1 message replayed")
	require.Eventually(t, func() bool { return s.handled.Load() == 1 }, patience, 10*time.Millisecond)

	// Live tail, with a pause.
	b.do(chromedp.Navigate(s.url + "tail?pattern=invoice.%3E"))
	b.sees("Live")
	b.seesPublished(s, "i-shown")
	b.shoot("tail-light")
	b.click("Pause")
	b.sees("Paused")
	require.NoError(t, s.Publish(t.Context(), InvoiceIssued{"i-hidden"}))
	b.click("Resume")
	b.sees("Live")
	b.seesPublished(s, "i-last")
	require.NotContains(t, evaluate[string](b, "document.body.innerText"), "i-hidden")

	b.requireQuiet()
}

// TestPages_fitAndCanBeUsedByKeyboard looks at each page in both schemes, at the width of a phone too.
func TestPages_fitAndCanBeUsedByKeyboard(t *testing.T) {
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	s.fill(t)
	pages := s.pages(t)
	for name, page := range pages {
		for _, dark := range []bool{false, true} {
			b.dark(dark)
			for _, width := range []int64{1280, 400} {
				b.do(chromedp.EmulateViewport(width, 900), chromedp.Navigate(s.url+page), chromedp.WaitReady(chromedp.CSS("main")))
				require.LessOrEqual(t, evaluate[int](b, "document.documentElement.scrollWidth"), int(width), "%s at %d", name, width)
				if dark {
					require.NotEqual(t, "rgb(247, 248, 248)", evaluate[string](b, "getComputedStyle(document.body).backgroundColor"))
				}
				b.shoot(name + map[bool]string{true: "-dark", false: "-light"}[dark] + map[int64]string{1280: "", 400: "-400"}[width])
			}
		}
		require.Empty(t, evaluate[[]string](b, unlabelled), name)
		require.Equal(t, 1, evaluate[int](b, `document.querySelectorAll("h1").length`), name)
		require.Empty(t, evaluate[[]string](b, poorContrast), name)
		b.do(chromedp.KeyEvent("\t"))
		require.Equal(t, "Skip to the content", evaluate[string](b, "document.activeElement.innerText"), name)
		b.do(chromedp.KeyEvent("\t"), chromedp.KeyEvent("\t"))
		require.NotEqual(t, "none", evaluate[string](b, "getComputedStyle(document.activeElement).outlineStyle"), name)
	}
	b.requireQuiet()
}

// TestPages_canBeReadWithoutJavaScript reads each page with scripts switched off, and listens to a topic.
func TestPages_canBeReadWithoutJavaScript(t *testing.T) {
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	s.fill(t)
	b.do(func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return chromedp.Void{}, err
	})
	pages := s.pages(t)
	for name, texts := range map[string][]string{
		"overview": {"shop.charge", "paused", "Reload for new numbers."}, "group": {"card declined", "15 messages", "Reload for new numbers."},
		"message": {"Story", `"total": 250`}, "doctor": {"transport in memory"}, "wiring": {"order.placed.v1 → order.placed.v2"},
		"outbox": {"There is no outbox here."}, "tail": {"Without JavaScript, listen for some seconds."}, "publish": {"Review…"},
		"confirm": {"Drop 15 messages?"}, "edit": {"Payload"}, "pause": {"Pause shop.charge?"},
		"find": {"Poisoned messages", "card declined", "16 messages"},
	} {
		b.do(chromedp.Navigate(s.url + pages[name]))
		b.sees(texts...)
		delete(pages, name)
	}
	require.Empty(t, pages, "not read")

	// Actions are forms, too.
	b.do(chromedp.Navigate(s.url + "group?group=shop.charge&class=card+declined"))
	b.click("Replay…")
	b.sees("Replay 11 messages?")
	s.repaired.Store(true)
	b.click("Replay them")
	b.sees("11 messages replayed")

	// The tail listens for some seconds.
	ctx, cancel := context.WithCancel(t.Context())
	published := make(chan struct{})
	go func() {
		defer close(published)
		for ctx.Err() == nil {
			_ = s.Publish(ctx, InvoiceIssued{"i-heard"})
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	b.do(chromedp.Navigate(s.url + "tail?pattern=invoice.%3E&listen=5"))
	b.sees("i-heard")
	cancel()
	<-published
	b.requireQuiet()
}

// TestPause_byKeyboard pauses a group with nothing but Tab and Enter, while the page is live.
func TestPause_byKeyboard(t *testing.T) {
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	press := func(text string) {
		t.Helper()
		for range 40 {
			b.do(chromedp.KeyEvent("\t"))
			if evaluate[string](b, "document.activeElement.innerText") == text {
				require.NotEqual(t, "none", evaluate[string](b, "getComputedStyle(document.activeElement).outlineStyle"))
				b.do(chromedp.KeyEvent("\r"))
				return
			}
		}
		require.Fail(t, "no way to "+text)
	}
	b.do(chromedp.Navigate(s.url))
	b.sees("shop.search-index", "Live")
	press("shop.search-index")
	b.sees("Pause the group…", "Live")
	press("Pause the group…")
	b.sees("Pause shop.search-index?")
	press("Pause the group")
	b.sees("shop.search-index is paused")
	require.NotEmpty(t, s.paused("shop.search-index"))
	press("Back to the group")
	b.sees("paused by an operator", "Live")
	b.shoot("group-held-light")
	press("Resume the group…")
	b.sees("Resume shop.search-index?")
	press("Resume the group")
	b.sees("shop.search-index is resumed")
	require.Empty(t, s.paused("shop.search-index"))
	b.requireQuiet()
}

// unlabelled returns what a screen reader could not name, and ids that are there twice.
const unlabelled = `[
	...[...document.querySelectorAll("input:not([type=hidden]), select, textarea")].filter(e => !e.labels.length && !e.ariaLabel).map(e => "no label: " + e.outerHTML),
	...[...document.querySelectorAll("a, button")].filter(e => !e.hidden && !e.textContent.trim() && !e.ariaLabel).map(e => "no name: " + e.outerHTML),
	...[...document.querySelectorAll("table th:not([scope])")].map(e => "no scope: " + e.outerHTML),
	...[...document.querySelectorAll("[id]")].filter(e => document.querySelectorAll("#" + CSS.escape(e.id)).length > 1).map(e => "twice: " + e.id),
	...[...document.querySelectorAll("[aria-labelledby], [aria-describedby]")].flatMap(e => [e.getAttribute("aria-labelledby"), e.getAttribute("aria-describedby")])
		.filter(id => id && !document.getElementById(id)).map(id => "no such id: " + id),
]`

// poorContrast returns texts whose contrast with their background is below 4.5 : 1.
const poorContrast = `(() => {
	const rgb = c => (c.match(/[\d.]+/g) || []).map(Number);
	const light = c => c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
	const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
	return [...document.querySelectorAll("body *")].filter(e => !e.closest("svg, .skip") && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
		&& e.getClientRects().length).flatMap(e => {
		const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		return ratio < 4.5 ? [ratio.toFixed(2) + " " + e.outerHTML.slice(0, 120)] : [];
	});
})()`

// requireQuiet fails the test for anything in the browser's console, and for a request to another host.
func (b *browser) requireQuiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.faults)
	require.Empty(b.t, b.foreign)
}
