package sql

import "context"

// database is a pool of connections and the tables that are reached by it. Everything else in this package that
// works on the tables does so over one of these. It retries nothing by itself. Its methods may be called
// concurrently.
type database struct {
	*statements
	pool    pool
	relaxed pool // the same, for commits that need not wait for the disk
	link    *link
	arrays  bool // an insert may pass its messages as arrays

	// What prepare finds out; nothing writes them afterwards.
	born    int64 // when the tables were made: no others share it
	file    *sqliteFile
	tellsTx bool // the server says whether a transaction is open, as MariaDB does
}

func newDatabase(over pool, cfg Config) (*database, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	statements, err := newStatements(cfg)
	if err != nil {
		return nil, err
	}
	_, arrays := over.(*pgxPool)
	return &database{statements: statements, pool: over, relaxed: relaxed(over), link: new(link), arrays: arrays}, nil
}

// newest changes when something is inserted, and sometimes before that is committed.
func (d *database) newest(ctx context.Context) (int64, error) {
	query := `SELECT max(id) FROM {messages}`
	if d.name == Postgres {
		query = `SELECT last_value FROM {messages_id_seq}`
	}
	n, _, err := number(ctx, d.pool, d.sql(query))
	return n, err
}
