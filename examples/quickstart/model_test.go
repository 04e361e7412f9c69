package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// The model calculates the expected results from the text of the events. It shares no code with the program or
// leat.

func modelOf(text []byte) report {
	r := report{Groups: map[string]groupReport{}}
	handled := map[string]bool{}
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		if strings.TrimSpace(string(line)) == "" {
			continue
		}
		r.Read++
		e, ok := modelEvent(line)
		if !ok {
			r.Rejected++
			continue
		}
		r.Published++
		outcomes := modelOutcomes(e)
		if len(outcomes) == 0 {
			r.Unrouted++
		}
		for group, good := range outcomes {
			g, key := r.Groups[group], fmt.Sprint(group, e["source"], "\x00", e["id"])
			switch {
			case !good:
				g.Poisoned++
			case handled[key]:
				g.Duplicates++
			case group == "reserve-stock" && e["type"] == "order.placed.vx":
				handled[key] = true // another event, which is discarded
			default:
				g.Handled++
				handled[key] = true
			}
			r.Groups[group] = g
		}
	}
	return r
}

func modelEvent(line []byte) (e map[string]any, ok bool) {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if decoder.Decode(&e) != nil || decoder.More() || e["specversion"] != "1.0" {
		return nil, false
	}
	for _, name := range []string{"id", "source", "type"} {
		if text, isText := e[name].(string); !isText || text == "" {
			return nil, false
		}
	}
	return e, !strings.ContainsAny(e["type"].(string), " *>#")
}

// modelOutcomes returns, by group, whether the event is handled there.
func modelOutcomes(e map[string]any) map[string]bool {
	outcomes := map[string]bool{}
	eventType, _ := e["type"].(string)
	data, _ := e["data"].(map[string]any)
	orderID, isText := data["order_id"].(string)
	good := isText && orderID != ""
	name, version, _ := strings.Cut(strings.TrimPrefix(eventType, "order."), ".")
	if strings.HasPrefix(eventType, "order.") {
		outcomes["audit"] = true
	}
	if strings.Contains(version, ".") {
		return outcomes // a type below the event, which is for the audit only
	}
	switch name {
	case "placed":
		switch version {
		case "v1":
			good = good && notNegative(data["total"])
		case "vx":
			good = true
		case "v2":
			good = good && notNegative(data["total_cents"])
			items, _ := data["items"].([]any)
			for _, item := range items {
				fields, _ := item.(map[string]any)
				good = good && notNegative(fields["quantity"])
			}
		default:
			good = false
		}
		outcomes["reserve-stock"] = good
	case "paid":
		good = good && version == "v1" && notNegative(data["cents"])
		outcomes["book-payment"] = good && data["method"] != "bounced" && data["method"] != "panic"
	}
	return outcomes
}

func notNegative(v any) bool {
	number, ok := v.(json.Number)
	return v == nil || ok && !strings.HasPrefix(number.String(), "-")
}

// strangers returns random lines as foreign producers may send them.
func strangers(seed uint64, lines int) []byte {
	random := rand.New(rand.NewPCG(seed, seed)) // to be repeated
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	var text bytes.Buffer
	var earlier []string
	for n := range lines {
		order := fmt.Sprintf("o%d", random.IntN(lines/3+1))
		id := pick(order, order, order, order, order, order, order, order, order, "")
		event := func(eventType, data string) string {
			return fmt.Sprintf(`{"data":%s,"type":%q,"specversion":"1.0","subject":%q,"id":"%d","source":%q,"extra":true}`,
				data, eventType, order, n, pick("/till", "urn:shop:1"))
		}
		var line string
		switch r := random.IntN(100); {
		case r < 3:
			line = pick("{", "[]", "null", "\t", `{"specversion":"1.0"}`, event("order.>", "{}"), event("", "{}"), "\xff\xfe")
		case r < 8 && len(earlier) > 0:
			line = pick(earlier...)
		case r < 10:
			line = event(pick("order.paid.v9", "order.placed.v3", "order.placed.vx"), `{"order_id":"o"}`)
		case r < 13:
			line = event(pick("invoice.sent.v1", "order", "orders.placed.v1"), `{"order_id":"o"}`)
		case r < 15:
			line = event(pick("order.cancelled.v1", "order.paid.v1.eu"), pick(`{}`, `null`, `"text"`))
		case r < 40:
			line = event("order.placed.v1", fmt.Sprintf(`{"order_id":%q,"customer":"c","total":%s}`, id,
				pick("0", "0.1", "19.99", "20", "1e2", "0.005", "-0.001", "-3", `"19.99"`, "1234567.89")))
		case r < 65:
			line = event("order.placed.v2", fmt.Sprintf(`{"order_id":%q,"total_cents":%s,"currency":"EUR","items":[{"sku":"a","quantity":%s}]}`,
				id, pick("0", "1", "99999999", "5", "-5"), pick("1", "2", "3", "0", "-1")))
		default:
			line = event("order.paid.v1", fmt.Sprintf(`{"order_id":%q,"cents":%s,"method":%q,"paid_at":"2026-01-01T00:00:00Z"}`,
				id, pick("1", "100", "250000", "-1"), pick("card", "card", "card", "transfer", "flaky", "bounced", "panic")))
		}
		if earlier = append(earlier, line); len(earlier) > 50 {
			earlier = earlier[1:]
		}
		text.WriteString(line + pick("\n", "\r\n"))
	}
	return text.Bytes()
}
