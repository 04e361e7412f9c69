package console

import (
	"errors"
	"net/http"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// publishPage is a test event.
type publishPage struct {
	Type, Key, Subject, Data string
	Topics                   []string // that groups ask for, without patterns
	Review                   bool
	Groups                   []string // that would get it
	Published                string   // its id
}

func (c *console) publishForm(w http.ResponseWriter, r *http.Request) error {
	if !c.Actions {
		return &pageError{http.StatusForbidden, "This console is read-only."}
	}
	page := publishPage{Type: r.FormValue("type"), Data: "{}"}
	return c.showPublish(w, r, page)
}

func (c *console) showPublish(w http.ResponseWriter, r *http.Request, page publishPage) error {
	err := c.sampler.now(r.Context(), func(s sample, _ map[string][]point) {
		if s.service != nil {
			for _, g := range s.service.Groups {
				page.Topics = append(page.Topics, g.Types...)
			}
		}
		for _, g := range s.groups {
			for _, topic := range g.Topics {
				if page.Type != "" && driver.MatchTopic(topic, page.Type) {
					page.Groups = append(page.Groups, g.Name)
					break
				}
			}
		}
	})
	if err != nil {
		return err
	}
	return c.render(w, r, http.StatusOK, "publish", "publish", "Publish a test event", page)
}

// publish shows who would get the event and, once that is confirmed, publishes it.
func (c *console) publish(w http.ResponseWriter, r *http.Request) error {
	page := publishPage{
		Type: strings.TrimSpace(r.PostFormValue("type")), Key: r.PostFormValue("key"), Subject: r.PostFormValue("subject"), Data: r.PostFormValue("data"),
		Review: true,
	}
	msg, err := admin.Event{Type: page.Type, Key: page.Key, Subject: page.Subject, Source: "leat", Data: []byte(page.Data)}.Message()
	if err == nil && c.Bus != nil { // else the service checks it
		err = admin.CheckMessage(c.Bus, msg)
	}
	if err != nil {
		return &pageError{http.StatusBadRequest, err.Error()}
	}
	if r.PostFormValue("do") != "publish" {
		return c.showPublish(w, r, page)
	}
	err = c.transport.Publish(r.Context(), page.Type, msg)
	c.log(r, "publish "+page.Type, "", 1, err)
	if errors.Is(err, driver.ErrUnroutable) {
		return &pageError{http.StatusUnprocessableEntity, "No group wants " + page.Type + ", so it went nowhere."}
	}
	if err != nil {
		return err
	}
	page.Review, page.Published = false, driver.MessageID(msg)
	return c.showPublish(w, r, page)
}
