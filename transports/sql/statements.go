package sql

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

var errDialect = errors.New("use postgres, mysql (MariaDB's too) or sqlite")

func dialectOf(name Dialect) (dialect, error) {
	switch name {
	case Postgres:
		return postgresDialect(), nil
	case MySQL:
		return mysqlDialect(), nil
	case SQLite:
		return sqliteDialect(), nil
	default:
		return dialect{}, fmt.Errorf("dialect %q: %w", name, errDialect)
	}
}

// statements replaces the placeholders of statements, for one dialect and one set of tables. It may be used concurrently.
type statements struct {
	dialect
	cfg      Config
	names    *strings.Replacer
	json     bool     // headers are written as JSON; not written after the tables are prepared, nor are the next three
	bounded  bool     // look-ups in key queues may have lower bounds
	fenced   bool     // groups have fencing numbers
	programs bool     // consumers have programs and topics
	done     sync.Map // statement as written → statement as sent
}

// moreAttempts increments the attempt. Others may write any number into a row, and an overflow would make every claim of
// the group fail. Times are compared with 0 before a subtraction for the same reason.
const moreAttempts = "CASE WHEN attempt < 2000000000 THEN attempt + 1 ELSE attempt END"

func newStatements(cfg Config) (*statements, error) {
	d, err := dialectOf(cfg.Dialect)
	if err != nil {
		return nil, err
	}
	s := &statements{dialect: d, cfg: cfg}
	queue := d.quote(cfg.Prefix + "messages_queue")
	force := "" // the planners of the others choose the index by themselves
	if d.name == MySQL {
		force = "FORCE INDEX (" + queue + ")"
	}
	pairs := append(statePairs(), "{now}", d.now, "{more}", moreAttempts, "{queue}", queue, "{force}", force)
	for _, table := range []string{"groups", "subscriptions", "consumers", "turns", "messages", "holds", "inbox", "states", "migrations", "messages_id_seq"} {
		pairs = append(pairs, "{"+table+"}", s.table(table))
	}
	s.names = strings.NewReplacer(pairs...)
	return s, nil
}

func (s *statements) table(name string) string {
	full := s.quote(s.cfg.Prefix + name)
	if s.cfg.Schema != "" {
		full = s.quote(s.cfg.Schema) + "." + full
	}
	return full
}

// sql returns the statement for a query. The query must be one of a bounded number, because statements are cached.
func (s *statements) sql(query string) string {
	if done, ok := s.done.Load(query); ok {
		return done.(string)
	}
	done := s.complete(query)
	s.done.Store(query, done)
	return done
}

// complete returns the statement for a query, and does not cache it.
func (s *statements) complete(query string) string {
	query = strings.ReplaceAll(query, "{live}", "SELECT id FROM {consumers} WHERE group_id = ? AND expires_at > {now}")
	query = s.names.Replace(query)
	if !s.dollars {
		return query
	}
	query = strings.ReplaceAll(query, "{in}", "= ANY(?)")
	var b strings.Builder
	n := 0
	for i := range len(query) {
		if query[i] != '?' {
			b.WriteByte(query[i])
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// withIDs returns the statement and the arguments for a query that has {in} for a list of ids. There must be at least one id.
func (s *statements) withIDs(query string, ids []int64, args ...any) (string, []any) {
	query = s.sql(query)
	if s.dollars {
		return query, append(args, ids)
	}
	list := make([]byte, 0, 8*len(ids)+8)
	list = append(list, "IN ("...)
	for i, id := range ids {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, id, 10)
	}
	list = append(list, ')')
	return strings.Replace(query, "{in}", string(list), 1), args
}
