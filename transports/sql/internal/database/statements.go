package database

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

var errDialect = errors.New("use postgres, mysql (MariaDB's too) or sqlite")

func dialectOf(name sqlconfig.Dialect) (dialect, error) {
	switch name {
	case sqlconfig.Postgres:
		return postgresDialect(), nil
	case sqlconfig.MySQL:
		return mysqlDialect(), nil
	case sqlconfig.SQLite:
		return sqliteDialect(), nil
	default:
		return dialect{}, fmt.Errorf("dialect %q: %w", name, errDialect)
	}
}

// Statements replaces the placeholders of statements, for one dialect and one set of tables. It may be used concurrently.
type Statements struct {
	dialect
	Config sqlconfig.Config
	names  *strings.Replacer
	done   sync.Map // statement as written → statement as sent

	// What the tables' version supports. Set by Prepare and not written afterwards.
	JSON     bool // headers are written as JSON
	Bounded  bool // look-ups in key queues may have lower bounds
	Fenced   bool // groups have fencing numbers
	Programs bool // consumers have programs and topics
}

// moreAttempts increments the attempt. Others may write any number into a row, and an overflow would make every claim of
// the group fail. Times are compared with 0 before a subtraction for the same reason.
const moreAttempts = "CASE WHEN attempt < 2000000000 THEN attempt + 1 ELSE attempt END"

// NewStatements returns the statements for the tables of a configuration. It returns an error if the configuration is invalid.
func NewStatements(cfg sqlconfig.Config) (*Statements, error) {
	cfg, err := config.Complete(cfg)
	if err != nil {
		return nil, err
	}
	d, err := dialectOf(cfg.Dialect)
	if err != nil {
		return nil, err
	}
	s := &Statements{dialect: d, Config: cfg}
	queue := d.quote(cfg.Prefix + "messages_queue")
	force := "" // the planners of the others choose the index by themselves
	if d.Name == sqlconfig.MySQL {
		force = "FORCE INDEX (" + queue + ")"
	}
	pairs := append(statePairs(), "{now}", d.now, "{more}", moreAttempts, "{queue}", queue, "{force}", force)
	for _, table := range []string{"groups", "subscriptions", "consumers", "turns", "messages", "holds", "inbox", "states", "migrations", "messages_id_seq"} {
		pairs = append(pairs, "{"+table+"}", s.Table(table))
	}
	s.names = strings.NewReplacer(pairs...)
	return s, nil
}

// ForVersion returns the statements for tables of a version, for inserts.
func (s *Statements) ForVersion(version int) *Statements {
	return &Statements{dialect: s.dialect, Config: s.Config, names: s.names, Bounded: s.Bounded, JSON: version >= versionJSON}
}

// Table returns the name of a table for statements.
func (s *Statements) Table(name string) string {
	full := s.quote(s.Config.Prefix + name)
	if s.Config.Schema != "" {
		full = s.quote(s.Config.Schema) + "." + full
	}
	return full
}

// SQL returns the statement for a query. The query must be one of a bounded number, because statements are cached.
func (s *Statements) SQL(query string) string {
	if done, ok := s.done.Load(query); ok {
		return done.(string)
	}
	done := s.Complete(query)
	s.done.Store(query, done)
	return done
}

// Complete returns the statement for a query, and does not cache it.
func (s *Statements) Complete(query string) string {
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

// WithIDs returns the statement and the arguments for a query that has {in} for a list of ids. There must be at least one id.
func (s *Statements) WithIDs(query string, ids []int64, args ...any) (string, []any) {
	query = s.SQL(query)
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
