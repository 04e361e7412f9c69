// Command outbox is an HTTP service that takes orders, with PostgreSQL for its rows and RabbitMQ for its events.
// An order and its event are written in one transaction, so there is never one without the other, even if
// the process dies. Every order gets one receipt, however often its event is delivered.
//
//	LEAT_URL=amqp://guest:guest@localhost:5672/ DATABASE_URL=postgres://postgres@localhost/test go run ./examples/outbox
//	curl -d '{"customer": "Ada", "cents": 1999}' localhost:8080/orders
//	curl localhost:8080/orders
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// OrderPlaced is published for each order.
type OrderPlaced struct {
	OrderID  string `json:"order_id"`
	Customer string `json:"customer"`
	Cents    int64  `json:"cents"`
}

// EventType returns the event's name and version on the wire.
func (OrderPlaced) EventType() (name string, version int) { return "order.placed", 1 }

// PartitionKey keeps the events of an order in order.
func (e OrderPlaced) PartitionKey() string { return e.OrderID }

// WriteReceipt is a handler that inserts a row. It runs in the transaction that also records the message,
// so there is one receipt for each order.
func WriteReceipt(ctx context.Context, tx pgx.Tx, e OrderPlaced) error {
	_, err := tx.Exec(ctx, `INSERT INTO receipts (order_id, text) VALUES ($1, $2)`,
		e.OrderID, fmt.Sprintf("%s paid %d.%02d", e.Customer, e.Cents/100, e.Cents%100))
	return err
}

// Shop takes orders.
type Shop struct {
	pool *pgxpool.Pool
	bus  *bus.Bus
}

// NewShop returns a shop.
func NewShop(pool *pgxpool.Pool, b *bus.Bus) *Shop { return &Shop{pool, b} }

// place writes the order and its event, or neither.
func (s *Shop) place(ctx context.Context, o OrderPlaced) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO orders (id, customer, cents) VALUES ($1, $2, $3)`, o.OrderID, o.Customer, o.Cents)
		if err != nil {
			return err
		}
		return s.bus.InTx(tx).Publish(ctx, o)
	})
}

func (s *Shop) post(w http.ResponseWriter, r *http.Request) {
	o := OrderPlaced{OrderID: bus.NewID()}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&o); err != nil {
		http.Error(w, "an order is JSON, with customer and cents", http.StatusBadRequest)
		return
	}
	if err := s.place(r.Context(), o); err != nil {
		slog.Error("order", "error", err)
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(o)
}

// totals has the numbers of orders and receipts.
type totals struct{ Orders, Receipts int }

func (s *Shop) get(w http.ResponseWriter, r *http.Request) {
	var t totals
	err := s.pool.QueryRow(r.Context(), `SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM receipts)`).Scan(&t.Orders, &t.Receipts)
	if err != nil {
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	_ = json.NewEncoder(w).Encode(t)
}

// NewPool connects and creates the service's own tables.
func NewPool(lc fx.Lifecycle) (*pgxpool.Pool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	lc.Append(fx.StopHook(pool.Close))
	_, err = pool.Exec(ctx, `
		CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, customer text NOT NULL, cents bigint NOT NULL);
		CREATE TABLE IF NOT EXISTS receipts (order_id text NOT NULL, text text NOT NULL)`)
	return pool, err
}

// Serve serves HTTP until the application stops.
func Serve(lc fx.Lifecycle, s *Shop) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", s.post)
	mux.HandleFunc("GET /orders", s.get)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	lc.Append(fx.StartStopHook(func() error {
		address := os.Getenv("LISTEN")
		if address == "" {
			address = "127.0.0.1:8080"
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		fmt.Println("listening on", l.Addr())
		go func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				slog.Error("serve", "error", err)
			}
		}()
		return nil
	}, server.Shutdown))
}

func main() {
	fx.New(
		fx.NopLogger,
		fxmodule.Module,
		fx.Provide(NewPool, NewShop),
		fxmodule.Outbox(func(pool *pgxpool.Pool) (*outbox.Outbox, error) {
			// With a short lease, another process soon relays the messages of one that died.
			return outbox.NewPgx(context.Background(), pool, outbox.Config{Service: "shop", Tables: sql.Config{Lease: 3 * time.Second}})
		}),
		fxmodule.Inbox[pgx.Tx](func(pool *pgxpool.Pool) (*inbox.Inbox[pgx.Tx], error) {
			return inbox.NewPgx(context.Background(), pool, inbox.Config{})
		}),
		fxmodule.HandleTx("receipts", WriteReceipt),
		fx.Invoke(Serve),
	).Run()
}
