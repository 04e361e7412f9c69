package console

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// editPage is a message whose payload and headers are edited.
type editPage struct {
	admin.Record
	Payload, Headers string // as the form has them
	Was              string // fingerprint of the message
	Changes          []change
	Review           bool
}

// change is a difference between a message and what is to become of it.
type change struct{ What, Before, After string }

// errNotText says that a form can't carry a message.
var errNotText = &pageError{http.StatusUnprocessableEntity, "A form can't carry this payload unchanged. Use leat poison edit with a file."}

func (a actions) edit(r *http.Request) (view, error) {
	group, m, err := messageOf(a.transport, r)
	if err != nil {
		return view{}, err
	}
	page := editPage{Record: admin.Summary(group, m), Was: fingerprint(m), Headers: headerLines(editable(m))}
	page.Payload, err = formPayload(m.Message.Payload)
	return view{"edit", "overview", "Edit", page}, err
}

// fingerprint tells whether a message is as it was when its form was made.
func fingerprint(m driver.PoisonedMessage) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%q %q", m.Message.Metadata, []byte(m.Message.Payload))
	return hex.EncodeToString(hash.Sum(nil))
}

// formPayload returns a payload as a form shows it. JSON is indented.
func formPayload(payload []byte) (string, error) {
	if len(payload) > maxForm/4 || !admin.IsPrintable(payload) {
		return "", errNotText
	}
	var indented bytes.Buffer
	if json.Indent(&indented, payload, "", "  ") == nil && indented.Len() <= maxForm/4 {
		return indented.String(), nil
	}
	return string(payload), nil
}

// payloadOf returns the payload of a form. JSON without spaces stays so, and text that means the same as before stays as
// it was.
func payloadOf(form string, was []byte) []byte {
	form = strings.ReplaceAll(form, "\r\n", "\n") // which browsers send for a newline
	if shown, err := formPayload(was); err == nil && shown == form {
		return was
	}
	var compact bytes.Buffer
	if json.Compact(&compact, was) == nil && bytes.Equal(compact.Bytes(), was) {
		compact.Reset()
		if json.Compact(&compact, []byte(form)) == nil {
			return compact.Bytes()
		}
	}
	return []byte(form)
}

// editable returns the headers that a form can carry, and that are not leat's own.
func editable(m driver.PoisonedMessage) map[string]string {
	headers := maps.Clone(map[string]string(m.Message.Metadata))
	maps.DeleteFunc(headers, func(name, value string) bool {
		return strings.HasPrefix(name, "leat_") || admin.Printable(name) != name || admin.Printable(value) != value || value == "" ||
			strings.TrimSpace(name) != name || strings.TrimSpace(value) != value || strings.Contains(name, ":")
	})
	return headers
}

func headerLines(headers map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		fmt.Fprintf(&b, "%s: %s\n", name, headers[name])
	}
	return b.String()
}

// headersOf returns the headers of a form, and those that it has left out with an empty value.
func headersOf(form string, was map[string]string) (map[string]string, error) {
	headers := make(map[string]string)
	for name := range was {
		headers[name] = ""
	}
	for line := range strings.Lines(form) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, &pageError{http.StatusBadRequest, fmt.Sprintf("The line %q is no header; write name: value.", line)}
		}
		headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return headers, nil
}

// change shows what an edit would change and, once that is confirmed, does it.
func (a actions) change(r *http.Request) (view, error) {
	r, cancel := patient(r)
	defer cancel()
	group, m, err := messageOf(a.transport, r)
	if err != nil {
		return view{}, err
	}
	if r.PostFormValue("was") != fingerprint(m) {
		return view{}, &pageError{http.StatusConflict, "Somebody has changed the message meanwhile. Nothing was changed; open it again."}
	}
	headers, err := headersOf(r.PostFormValue("headers"), editable(m))
	if err != nil {
		return view{}, err
	}
	edited, err := admin.Edit(m, payloadOf(r.PostFormValue("payload"), m.Message.Payload), headers)
	if err != nil {
		return view{}, &pageError{http.StatusBadRequest, err.Error()}
	}
	do := r.PostFormValue("do")
	if do != "save" && do != "replay" {
		page := editPage{
			Record: admin.Summary(group, m), Payload: r.PostFormValue("payload"), Headers: r.PostFormValue("headers"), Was: r.PostFormValue("was"),
			Changes: changes(m, edited), Review: true,
		}
		return view{"edit", "overview", "Edit", page}, nil
	}
	queue, moved := a.transport.PoisonQueue(group), admin.Moved{}
	if err = queue.Put(r.Context(), edited); err == nil && do == "replay" {
		if moved.Done, err = queue.Replay(r.Context(), m.ID); err != nil {
			err = fmt.Errorf("the message was changed, and not replayed: %w", err)
		}
	}
	a.log.record(r, "edit, "+do, group, 1, err)
	if errors.Is(err, driver.ErrNotFound) {
		err = errMessageGone
	}
	page := donePage{deed: deed{Do: "edit", Title: "Edit", Did: "changed"}, Group: group, Moved: admin.Moved{Done: 1}}
	if do == "replay" {
		page.Did = "changed and replayed"
	}
	return view{"done", "overview", "Edit", page}, err
}

// changes returns what differs.
func changes(m, edited driver.PoisonedMessage) (all []change) {
	before, after := m.Message.Metadata, edited.Message.Metadata
	names := maps.Clone(after)
	maps.Copy(names, before)
	if !bytes.Equal(m.Message.Payload, edited.Message.Payload) {
		all = append(all, change{"Payload", showPayload(m.Message.Payload).Text, showPayload(edited.Message.Payload).Text})
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if before[name] != after[name] {
			all = append(all, change{"Header " + name, admin.Printable(before[name]), admin.Printable(after[name])})
		}
	}
	return all
}
