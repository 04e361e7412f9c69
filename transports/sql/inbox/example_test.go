package inbox_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
)

type seatBooked struct{ Seat string }

func (seatBooked) EventType() (name string, version int) { return "seat.booked", 1 }

// openShop returns the service's own database.
func openShop() (db *stdsql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "shop-")
	if err != nil {
		panic(err)
	}
	db, err = stdsql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_pragma=busy_timeout(60000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err == nil {
		_, err = db.Exec(`CREATE TABLE seats (seat TEXT)`)
	}
	if err != nil {
		panic(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(dir)
	}
}

// An inbox records the message in the transaction of its handler, so a message that is delivered twice has its effect once.
func ExampleNew() {
	db, remove := openShop()
	defer remove()
	inbox, err := inbox.New(context.Background(), db, inbox.Config{Tables: sql.Config{Dialect: sql.SQLite}})
	if err != nil {
		fmt.Println(err)
		return
	}
	h := bustest.New(&testing.T{}, handlers.Tx("book", inbox, func(ctx context.Context, tx *stdsql.Tx, e seatBooked) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO seats VALUES (?)`, e.Seat)
		return err
	}, handlers.Dedup(bus.DedupOff)))
	h.Publish(seatBooked{Seat: "4A"})
	h.WaitIdle()
	bustest.Redeliver[seatBooked](h, "book")
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	_ = inbox.Close()

	var seats int
	err = db.QueryRow(`SELECT count(*) FROM seats`).Scan(&seats)
	fmt.Println(seats, err)
	// Output: 1 <nil>
}
