// Command gen writes events.ndjson, the events of the quickstart: about 1,000 CloudEvents of a shop, with
// many kinds of errors. Its output is always the same.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

const (
	orders = 490
	file   = "events.ndjson"
)

func main() {
	if err := os.WriteFile(file, Events(), 0o644); err != nil { //nolint:gosec // a public file
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// Events returns the contents of the file.
func Events() []byte {
	g := &generator{random: rand.New(rand.NewPCG(1, 2)), now: time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)} // deterministic
	for number := 1; number <= orders; number++ {
		g.order(fmt.Sprintf("A-%04d", 1000+number))
	}
	g.scatter(malformed())
	return append(bytes.Join(g.lines, []byte("\n")), '\n')
}

type generator struct {
	random *rand.Rand
	now    time.Time
	lines  [][]byte
	events int
}

type object = map[string]any

// order adds the events of one order: it is placed, and mostly paid.
func (g *generator) order(id string) {
	n := g.random.IntN(1000)
	cents := 100 + g.random.IntN(50_000)
	placed := g.placed(id, cents)
	if n%20 == 0 { // a producer that sends twice
		g.lines = append(g.lines, placed)
	}
	if n%50 == 1 {
		g.event("order.cancelled.v1", id, object{"order_id": id, "reason": "customer"})
		return
	}
	paid := g.event("order.paid.v1", id, g.payment(id, cents, g.method()))
	switch {
	case n%25 == 2:
		g.lines = append(g.lines, paid)
	case n%100 == 3:
		g.event("order.paid.v9", id, object{"order": id, "paid": object{"EUR": cents}})
	case n%100 == 4:
		g.event("invoice.sent.v1", id, object{"order_id": id})
	case n%100 == 5:
		g.event("order.paid.v1", id, g.payment("", cents, "card"))
	case n%100 == 6:
		g.event("order.paid.v1", id, g.payment(id, -cents, "transfer"))
	case n%100 == 7:
		g.event("order.placed.v2", id, object{"order_id": id, "customer": "c-0", "total_cents": "1999"})
	}
}

func (g *generator) placed(id string, cents int) []byte {
	customer := fmt.Sprintf("c-%d", 1+g.random.IntN(90))
	if g.random.IntN(5) < 2 {
		total := json.Number(fmt.Sprintf("%d.%02d", cents/100, cents%100))
		return g.event("order.placed.v1", id, object{"order_id": id, "customer": customer, "total": total})
	}
	items := []object{{"sku": fmt.Sprintf("sku-%d", g.random.IntN(40)), "quantity": 1 + g.random.IntN(4)}}
	return g.event("order.placed.v2", id, object{
		"order_id": id, "customer": customer, "total_cents": cents, "currency": "EUR", "items": items,
	})
}

func (g *generator) payment(id string, cents int, method string) object {
	return object{"order_id": id, "cents": cents, "method": method, "paid_at": g.now.Format(time.RFC3339)}
}

func (g *generator) method() string {
	switch n := g.random.IntN(100); {
	case n < 60:
		return "card"
	case n < 88:
		return "transfer"
	case n < 95:
		return "flaky"
	case n < 98:
		return "bounced"
	default:
		return "panic"
	}
}

func (g *generator) event(eventType, subject string, data object) []byte {
	g.events++
	g.now = g.now.Add(time.Duration(1+g.random.IntN(20)) * time.Second)
	text, err := json.Marshal(object{
		"specversion": "1.0", "id": fmt.Sprintf("e-%04d", g.events), "source": "/shop", "type": eventType,
		"subject": subject, "time": g.now.Format(time.RFC3339), "data": data,
	})
	if err != nil {
		panic(err) // all these values can be encoded
	}
	g.lines = append(g.lines, text)
	return text
}

// scatter puts lines between the others.
func (g *generator) scatter(lines []string) {
	for i, text := range lines {
		at := (i + 1) * len(g.lines) / (len(lines) + 1)
		g.lines = slices.Insert(g.lines, at, []byte(text))
	}
}

// malformed returns lines that are not valid CloudEvents.
func malformed() []string {
	return []string{
		`this is not JSON`,
		`{"specversion":"1.0","id":"e-cut-off","source":"/shop","type":"order.paid.v1","data":{"order_id":"A-1`,
		`{"specversion":"1.0","id":"e-no-type","source":"/shop","data":{"order_id":"A-1001"}}`,
		`{"specversion":"1.0","source":"/shop","type":"order.paid.v1","data":{"order_id":"A-1001"}}`,
		`{"specversion":"0.3","id":"e-old","source":"/shop","type":"order.paid.v1","data":{"order_id":"A-1001"}}`,
		`["an array"]`,
		`{"specversion":"1.0","id":"e-wildcard","source":"/shop","type":"order.*","data":{"order_id":"A-1001"}}`,
	}
}
