package sqlconfig_test

import (
	"fmt"

	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/outbox"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// An inbox and an outbox in the same tables.
func Example() {
	tables := sqlconfig.Config{Dialect: sqlconfig.MySQL, Prefix: "shop_"}
	in, out := inbox.Config{Tables: tables}, outbox.Config{Tables: tables}
	fmt.Println(in.Tables.Prefix, out.Tables.Dialect)
	// Output: shop_ mysql
}
