package console_test

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// post sends the form of a page with what its hidden fields have, and more.
func (s *shop) post(t *testing.T, action string, page answer, more ...string) answer {
	t.Helper()
	form := url.Values{}
	for _, field := range hidden.FindAllStringSubmatch(page.body, -1) {
		form.Add(html.UnescapeString(field[1]), html.UnescapeString(field[2]))
	}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return send(t, http.MethodPost, s.url+action, form, "Sec-Fetch-Site", "same-origin")
}

func TestActions_confirmBeforeTheyMove(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		s.poison(t, OrderPaid{Order: "o-1"}, OrderPaid{Order: "o-2"}, OrderPaid{Order: "o-3"})

		ask := s.get(t, "confirm?"+query("group", group, "do", "dry-run"))
		require.Contains(t, ask.text, "Dry run 3 messages?")
		require.Contains(t, ask.text, "Not everything can be undone.")
		done := s.post(t, "act", ask)
		require.Contains(t, done.text, "0 of 3 would now succeed")
		s.failing.Store(false)
		require.Contains(t, s.post(t, "act", ask).text, "3 of 3 would now succeed")
		require.Equal(t, 3, s.poisoned(t))

		ask = s.get(t, "confirm?"+query("group", group, "do", "drop", "key", "o-2"))
		require.Contains(t, ask.text, "Drop 1 message?")
		require.Equal(t, 3, s.poisoned(t))
		require.Contains(t, s.post(t, "act", ask).text, "1 message dropped")
		require.Equal(t, 2, s.poisoned(t))
		again := s.post(t, "act", ask)
		require.Contains(t, again.text, "0 messages dropped")
		require.Contains(t, again.text, "1 were gone already")

		handled := s.handled.Load()
		ask = s.get(t, "confirm?"+query("group", group, "do", "replay", "id", s.first(t)))
		require.Contains(t, ask.text, "Replay 1 message?")
		require.Contains(t, s.post(t, "act", ask).text, "1 message replayed")
		require.Eventually(t, func() bool { return s.handled.Load() == handled+1 }, patience, 5*time.Millisecond)
		require.Equal(t, 1, s.poisoned(t))
	})
}

func TestActions_leaveWhatWasPoisonedLater(t *testing.T) {
	s := newShop(t, "memory://", true)
	s.poison(t, OrderPaid{Order: "o-1"})
	ask := s.get(t, "confirm?"+query("group", group, "do", "drop"))
	s.poison(t, OrderPaid{Order: "o-2"})
	require.Contains(t, s.post(t, "act", ask).text, "1 message dropped")
	require.Equal(t, 1, s.poisoned(t))

	// A form that was made up, and names fewer than there are, is asked again.
	made := s.post(t, "act", answer{}, "group", group, "do", "drop", "count", "0", "before", time.Now().Add(time.Hour).Format(time.RFC3339Nano))
	require.Contains(t, made.text, "Nothing was done yet. 0 were confirmed, and there are 1 now.")
	require.Equal(t, http.StatusBadRequest, s.post(t, "act", answer{}, "group", group, "do", "drop", "count", "9").status)
	require.Equal(t, 1, s.poisoned(t))
}

func TestActions_boundHowManyMessagesAFormNames(t *testing.T) {
	s := newShop(t, "memory://", true)
	form := url.Values{"group": {group}, "do": {"drop"}}
	for i := range 201 {
		form.Add("id", fmt.Sprint(i))
	}
	require.Equal(t, http.StatusBadRequest, send(t, http.MethodGet, s.url+"confirm?"+form.Encode(), nil).status)
}

func TestEdit_showsTheChangeBeforeItChanges(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		s.poison(t, OrderPaid{Order: "o-1", Note: "wrong"})
		place := query("group", group, "id", s.first(t))
		form := s.get(t, "edit?"+place)
		require.Contains(t, form.text, `"note": "wrong"`)

		headers := "ce_id: other\r\nx-added: yes\r\n"
		payload := "{\r\n  \"order\": \"o-1\",\r\n  \"note\": \"right\"\r\n}"
		review := s.post(t, "edit", form, "payload", payload, "headers", headers)
		require.Contains(t, review.text, "Change 1 message?")
		require.Contains(t, review.text, `after { "order": "o-1", "note": "right" }`)
		require.Contains(t, review.text, "Header x-added")
		require.Contains(t, s.get(t, "payload?"+place).body, "wrong")

		require.Equal(t, http.StatusBadRequest, s.post(t, "edit", form, "payload", "{", "headers", headers).status)
		require.Equal(t, http.StatusBadRequest, s.post(t, "edit", form, "payload", payload, "headers", "leat_fault_error: none").status)
		require.Equal(t, http.StatusConflict, s.post(t, "edit", form, "payload", payload, "headers", headers, "was", "0").status)

		require.Contains(t, s.post(t, "edit", review, "do", "save").text, "1 message changed")
		require.Equal(t, `{"order":"o-1","note":"right"}`, s.get(t, "payload?"+place).body)
		require.Equal(t, http.StatusConflict, s.post(t, "edit", review, "do", "save").status)

		s.failing.Store(false)
		form = s.get(t, "edit?"+place)
		require.Contains(t, form.text, "x-added: yes")
		review = s.post(t, "edit", form, "payload", `{"order":"o-2"}`, "headers", "x-added: yes")
		require.Contains(t, s.post(t, "edit", review, "do", "replay").text, "1 message changed and replayed")
		s.awaitPoisoned(t, 0)
	})
}

func TestPublish_namesTheGroupsBefore(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		s.failing.Store(false)
		require.Contains(t, s.get(t, "publish").body, `<option value="order.paid.v2">`)
		review := s.post(t, "publish", answer{}, "type", "order.paid.v2", "data", `{"order":"o-1"}`)
		require.Contains(t, review.text, "1 group gets it, with all its effects: "+group)
		require.Zero(t, s.handled.Load())
		require.Contains(t, s.post(t, "publish", review, "do", "publish").text, "Published. Its id is")
		require.Eventually(t, func() bool { return s.handled.Load() == 1 }, patience, 5*time.Millisecond)

		require.Equal(t, http.StatusBadRequest, s.post(t, "publish", answer{}, "type", "order.>", "data", "{}").status)
		require.Equal(t, http.StatusBadRequest, s.post(t, "publish", answer{}, "type", "order.paid.v2", "data", "{").status)
		refused := s.post(t, "publish", answer{}, "type", "order.paid.v2", "data", `{"order":7}`)
		require.Equal(t, http.StatusBadRequest, refused.status)
		require.Contains(t, refused.text, "the handler send-receipt would refuse it")
		require.Equal(t, http.StatusUnprocessableEntity, s.post(t, "publish", answer{}, "type", "nobody.asks", "data", "{}", "do", "publish").status)
	})
}

func TestPause_stopsTheProcessFromTakingMessages(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		s.failing.Store(false)
		place := query("group", group)
		require.Contains(t, s.get(t, "group?"+place).text, "Pause the group…")
		ask := s.get(t, "pause?"+place+"&do=pause")
		require.Contains(t, ask.text, "Pause "+group+"?")
		require.Equal(t, !s.Transport().Capabilities().Durable, strings.Contains(ask.text, "Messages that wait are lost"))
		require.NotContains(t, s.get(t, "group?"+place).text, "Resume the group…", "asking changes nothing")

		require.Contains(t, s.post(t, "pause", ask).text, group+" is paused")
		page := s.get(t, "group?"+place).text
		require.Contains(t, page, "operator: paused by an operator since")
		require.Contains(t, page, "Resume the group…")
		require.NoError(t, s.Publish(t.Context(), OrderPaid{Order: "o-1"}))
		require.Contains(t, s.get(t, "").text, "1 group needs attention.")
		require.Zero(t, s.handled.Load())

		require.Contains(t, s.post(t, "pause", s.get(t, "pause?"+place+"&do=resume")).text, group+" is resumed")
		require.Eventually(t, func() bool { return s.handled.Load() == 1 }, patience, 5*time.Millisecond)

		require.Equal(t, http.StatusNotFound, s.post(t, "pause", answer{}, "group", "shop.none", "do", "pause").status)
		require.Equal(t, http.StatusNotFound, send(t, http.MethodGet, s.url+"pause?group=shop.none&do=pause", nil).status)
		require.Equal(t, http.StatusBadRequest, send(t, http.MethodGet, s.url+"pause?"+place, nil).status)
	})
}

func TestPause_isNotForAConsoleThatOnlyReads(t *testing.T) {
	s := newShop(t, "memory://", false)
	place := query("group", group)
	require.NotContains(t, s.get(t, "group?"+place).text, "Pause the group…")
	require.Equal(t, http.StatusForbidden, send(t, http.MethodGet, s.url+"pause?"+place+"&do=pause", nil).status)
	require.Equal(t, http.StatusForbidden, s.post(t, "pause", answer{}, "group", group, "do", "pause").status)
}
