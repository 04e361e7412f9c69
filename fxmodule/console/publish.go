package console

import (
	"errors"
	"net/http"
	"strings"

	"github.com/leatbus/leat/bus"
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

// publishing publishes test events.
type publishing struct {
	transport driver.Transport
	bus       *bus.Bus // whose handlers take the events; nil if it is in another process
	sampler   *sampler
	log       actionLog
}

func (p publishing) form(r *http.Request) (view, error) {
	return p.show(r, publishPage{Type: r.FormValue("type"), Data: "{}"})
}

// show returns a page with the groups that get the event.
func (p publishing) show(r *http.Request, page publishPage) (view, error) {
	err := p.sampler.now(r.Context(), func(s sample, _ map[string][]point) {
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
	return view{"publish", "publish", "Publish a test event", page}, err
}

// publish shows who would get the event and, once that is confirmed, publishes it.
func (p publishing) publish(r *http.Request) (view, error) {
	page := publishPage{
		Type: strings.TrimSpace(r.PostFormValue("type")), Key: r.PostFormValue("key"), Subject: r.PostFormValue("subject"), Data: r.PostFormValue("data"),
		Review: true,
	}
	msg, err := admin.Event{Type: page.Type, Key: page.Key, Subject: page.Subject, Source: "leat", Data: []byte(page.Data)}.Message()
	if err == nil && p.bus != nil { // else the service checks it
		err = admin.CheckMessage(p.bus, msg)
	}
	if err != nil {
		return view{}, &pageError{http.StatusBadRequest, err.Error()}
	}
	if r.PostFormValue("do") != "publish" {
		return p.show(r, page)
	}
	err = p.transport.Publish(r.Context(), page.Type, msg)
	p.log.record(r, "publish "+page.Type, "", 1, err)
	if errors.Is(err, driver.ErrUnroutable) {
		return view{}, &pageError{http.StatusUnprocessableEntity, "No group wants " + page.Type + ", so it went nowhere."}
	}
	if err != nil {
		return view{}, err
	}
	page.Review, page.Published = false, driver.MessageID(msg)
	return p.show(r, page)
}
