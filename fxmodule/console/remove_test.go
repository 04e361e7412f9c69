package console_test

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestRemove_deletesAGroupThatNobodyConsumes(t *testing.T) {
	s := newShop(t, "sqlite:"+filepath.Join(t.TempDir(), "shop.db"), true)
	place := query("group", "old.mail")
	old, err := s.Transport().Subscribe(t.Context(), driver.Subscription{Group: "old.mail", Topics: []string{"news"}, Concurrency: 1})
	require.NoError(t, err)
	publish := func(id string) {
		require.NoError(t, s.Transport().Publish(t.Context(), "news", message.NewMessage(id, []byte("{}"))))
	}
	publish("n-1")
	s.awaitText(t, "", "old.mail")
	require.NotContains(t, s.get(t, "group?"+place).text, "Delete the group…")
	require.Equal(t, http.StatusConflict, send(t, http.MethodGet, s.url+"remove?"+place, nil).status)
	require.NoError(t, old.Close(t.Context()))

	s.awaitText(t, "group?"+place, "Delete the group…")
	ask := s.get(t, "remove?"+place)
	require.Contains(t, ask.text, "Delete old.mail with 1 message?")
	publish("n-2")
	again := s.post(t, "remove", ask)
	require.Contains(t, again.text, "Nothing was done yet.")
	require.Contains(t, again.text, "Delete old.mail with 2 messages?")
	require.Contains(t, s.get(t, "group?"+place).text, "Waiting 2")

	require.Contains(t, s.post(t, "remove", again).text, "old.mail is deleted")
	require.NotContains(t, s.get(t, "").text, "old.mail")
	require.Equal(t, http.StatusNotFound, s.post(t, "remove", again).status)
	require.Equal(t, http.StatusConflict, s.post(t, "remove", answer{}, "group", group, "lost", "0").status)
	require.Equal(t, http.StatusBadRequest, s.post(t, "remove", answer{}, "group", group).status)
}

func TestRemove_isNotForGroupsInMemory(t *testing.T) {
	s := newShop(t, "memory://", true)
	require.NoError(t, s.SetPaused(group, true))
	require.NotContains(t, s.get(t, "group?"+query("group", group)).text, "Delete the group…")
	require.NotEqual(t, http.StatusOK, send(t, http.MethodGet, s.url+"remove?"+query("group", group), nil).status)
	readOnly := newShop(t, "memory://", false)
	require.Equal(t, http.StatusForbidden, send(t, http.MethodGet, readOnly.url+"remove?"+query("group", group), nil).status)
	require.Equal(t, http.StatusForbidden, readOnly.post(t, "remove", answer{}, "group", group, "lost", "0").status)
}
