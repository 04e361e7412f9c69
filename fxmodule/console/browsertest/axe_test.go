package browsertest

import (
	"net/url"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// TestPages_haveNoFindingOfAxe runs axe on each page, in both schemes, on a screen and on a phone. axe-core is not part
// of this module, because of its size and its licence (MPL 2.0): see axeSource.
func TestPages_haveNoFindingOfAxe(t *testing.T) {
	axe := axeSource(t)
	s := newShop(t)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	b := open(t, u.Host)
	s.fill(t)
	pages := s.pages(t)
	pages["filtered"] = "group?group=shop.charge&class=card+declined"
	pages["parked"] = "group?group=shop.ship"
	pages["paused"] = "group?group=shop.send-mail"
	for _, dark := range []bool{false, true} {
		b.dark(dark)
		for _, width := range []int64{1280, 400} {
			b.do(chromedp.EmulateViewport(width, 900))
			for name, page := range pages {
				b.do(chromedp.Navigate(s.url+page), chromedp.WaitReady(chromedp.CSS("main")))
				b.requireAccessible(axe, name)
			}

			// Pages behind a form.
			b.do(chromedp.Navigate(s.url+pages["edit"]), chromedp.SetValue(chromedp.CSS("textarea[name=payload]"), `{"order": "o-1"}`))
			b.click("Review…")
			b.sees("Change 1 message?", "before")
			b.requireAccessible(axe, "review of an edit")
			b.do(chromedp.Navigate(s.url+"publish"), chromedp.SetValue(chromedp.CSS("input[name=type]"), "order.placed.v2"))
			b.click("Review…")
			b.sees("Publish 1 event?")
			b.requireAccessible(axe, "review of a publish")
			b.do(chromedp.Navigate(s.url + "confirm?group=shop.charge&do=dry-run"))
			b.click("Try them")
			b.sees("would now succeed")
			b.requireAccessible(axe, "dry run")
		}
	}
	b.requireQuiet()
	b.do(chromedp.Navigate(s.url+"group?group=none"), chromedp.WaitReady(chromedp.CSS("main"))) // whose status the browser logs
	b.requireAccessible(axe, "error")
}

// finding is what axe finds wrong in an element.
type finding struct{ Impact, ID, Help, Target, HTML, Why string }

// requireAccessible fails the test if axe finds anything.
func (b *browser) requireAccessible(axe, page string) {
	b.t.Helper()
	evaluate[int](b, axe+"; 0")
	require.Empty(b.t, get(b, chromedp.Evaluate[[]finding](findings, chromedp.EvalAwaitPromise)), page)
}

const findings = `axe.run().then(r => r.violations.flatMap(v => v.nodes.map(n => ({
	Impact: n.impact, ID: v.id, Help: v.help, Target: n.target.join(" "), HTML: n.html.slice(0, 200), Why: n.failureSummary,
}))))`
