package sql_test

import _ "github.com/leatbus/leat/transports/sqlite"
