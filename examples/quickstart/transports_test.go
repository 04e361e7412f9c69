package main

import (
	"crypto/rand"
	"database/sql"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/leatbus/leat/internal/testenv"
)

// TestRun_transportIsOneVariable checks that the same program and events have the same report on every
// transport.
func TestRun_transportIsOneVariable(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T, service string) (rawURL string){
		"SQLite":                  func(t *testing.T, _ string) string { return "sqlite://" + filepath.Join(t.TempDir(), "bus.db") },
		"PostgreSQL":              onPostgres,
		"MariaDB":                 onMariaDB,
		"RabbitMQ quorum queues":  onRabbitMQ("quorum"),
		"RabbitMQ classic queues": onRabbitMQ("classic"),
	} {
		t.Run(name, func(t *testing.T) {
			service := "qs_" + rand.Text()
			env := environment{"LEAT_SERVICE": service, "LEAT_URL": open(t, service)}
			requireReport(t, start(t, nil, env, "-json"), modelOf(defaultEvents))
		})
	}
}

func onPostgres(t *testing.T, service string) string {
	rawURL := testenv.Postgres(t)
	db, err := sql.Open("pgx", rawURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	execute(t, db, `CREATE SCHEMA "`+service+`"`)
	t.Cleanup(func() { execute(t, db, `DROP SCHEMA "`+service+`" CASCADE`) })
	return testenv.WithOption(t, rawURL, "schema", service)
}

func onMariaDB(t *testing.T, service string) string {
	u, err := url.Parse(testenv.MySQL(t))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("mysql", u.User.Username()+password(u)+"@tcp("+u.Host+")/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	execute(t, db, "CREATE DATABASE `"+service+"`")
	t.Cleanup(func() { execute(t, db, "DROP DATABASE `"+service+"`") })
	u.Path = "/" + service
	return u.String()
}

func password(u *url.URL) string {
	if p, ok := u.User.Password(); ok {
		return ":" + p
	}
	return ""
}

func execute(t *testing.T, db *sql.DB, statement string) {
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func onRabbitMQ(queue string) func(t *testing.T, service string) string {
	return func(t *testing.T, service string) string {
		rawURL := testenv.WithOption(t, testenv.WithOption(t, testenv.RabbitMQ(t), "queue", queue), "exchange", service) // others publish the same topics
		t.Cleanup(func() {
			testenv.Forget(t, rawURL, service+".audit", service+".book-payment", service+".reserve-stock")
		})
		return rawURL
	}
}
