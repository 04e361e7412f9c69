package main

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// The events import nothing from leat. leat needs only a name and a version, and calls the method
// Validate if there is one.

// OrderPlaced is version 2: the total is in cents, and there are items.
type OrderPlaced struct {
	OrderID    string `json:"order_id"`
	Customer   string `json:"customer"`
	TotalCents int64  `json:"total_cents"`
	Currency   string `json:"currency"`
	Items      []Item `json:"items"`
}

// Item is one line of an order.
type Item struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

// EventType is the event's name and version on the wire.
func (OrderPlaced) EventType() (name string, version int) { return "order.placed", 2 }

// Validate says what is wrong with the order.
func (e OrderPlaced) Validate() error {
	for _, item := range e.Items {
		if item.Quantity < 0 {
			return fmt.Errorf("quantity of %q is %d; it can't be negative", item.SKU, item.Quantity)
		}
	}
	return validate(e.OrderID, e.TotalCents)
}

// OrderPlacedV1 is version 1, with the total as a decimal number of currency units.
type OrderPlacedV1 struct {
	OrderID  string `json:"order_id"`
	Customer string `json:"customer"`
	Total    Amount `json:"total"`
}

// EventType is the event's name and version on the wire.
func (OrderPlacedV1) EventType() (name string, version int) { return "order.placed", 1 }

// Validate says what is wrong with the order.
func (e OrderPlacedV1) Validate() error { return validate(e.OrderID, e.Total.Cents) }

// LiftOrderPlaced converts version 1 to version 2, so that handlers get only version 2.
func LiftOrderPlaced(old OrderPlacedV1) OrderPlaced {
	return OrderPlaced{OrderID: old.OrderID, Customer: old.Customer, TotalCents: old.Total.Cents, Currency: "EUR", Items: []Item{}}
}

// OrderPaid is a payment. In this program its method decides how the handler behaves.
type OrderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
	Method  string `json:"method"`
	PaidAt  string `json:"paid_at"`
}

// EventType is the event's name and version on the wire.
func (OrderPaid) EventType() (name string, version int) { return "order.paid", 1 }

// Validate says what is wrong with the payment.
func (e OrderPaid) Validate() error { return validate(e.OrderID, e.Cents) }

func validate(orderID string, cents int64) error {
	switch {
	case orderID == "":
		return errors.New("order_id is empty")
	case cents < 0:
		return fmt.Errorf("the amount is %d cents; it can't be negative", cents)
	default:
		return nil
	}
}

// Amount is an amount of money, written as a decimal number of currency units. It is parsed without a
// float: 19.99 is 1999, and half a cent is rounded up.
type Amount struct{ Cents int64 }

// maxAmountText and maxExponent are far above every valid number. They avoid expensive calculations with
// longer or larger ones.
const (
	maxAmountText = 64
	maxExponent   = 64
)

// UnmarshalJSON reads a JSON number.
func (a *Amount) UnmarshalJSON(text []byte) error {
	number := string(text)
	if number == "null" {
		return nil
	}
	if c := number[0]; c != '-' && (c < '0' || c > '9') {
		return errors.New("the amount is not a number of currency units")
	}
	cents, ok := parseCents(number)
	if !ok {
		return errors.New("the amount is out of range")
	}
	a.Cents = cents
	return nil
}

// parseCents rounds half a cent up, and a negative amount away from zero, so that Validate rejects it.
func parseCents(number string) (cents int64, ok bool) {
	if i := strings.IndexAny(number, "eE"); i >= 0 {
		exponent, err := strconv.Atoi(number[i+1:])
		if err != nil || exponent > maxExponent || exponent < -maxExponent {
			return 0, false
		}
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok || len(number) > maxAmountText {
		return 0, false
	}
	value.Mul(value, big.NewRat(100, 1))
	if value.Sign() >= 0 {
		value.Add(value, big.NewRat(1, 2))
	}
	rounded := new(big.Int).Div(value.Num(), value.Denom()) // towards minus infinity
	return rounded.Int64(), rounded.IsInt64()
}

// MarshalJSON writes what UnmarshalJSON reads.
func (a Amount) MarshalJSON() ([]byte, error) { //nolint:unparam // json.Marshaler
	return []byte(big.NewRat(a.Cents, 100).FloatString(2)), nil
}
