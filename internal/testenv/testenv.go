package testenv

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Redis returns the URL of a Redis the test may use, like
// redis://127.0.0.1:6379/0. Without one it skips the test, or fails it where
// LEAT_TEST_REQUIRE names redis.
func Redis(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "redis", "LEAT_TEST_REDIS_URL")
}

// RabbitMQ returns the URL of a RabbitMQ the test may use, like
// amqp://guest:guest@127.0.0.1:5672/. Without one it skips the test, or fails
// it where LEAT_TEST_REQUIRE names rabbitmq.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "rabbitmq", "LEAT_TEST_RABBITMQ_URL")
}

// Postgres returns the URL of a PostgreSQL the test may use, like
// postgres://postgres@127.0.0.1:5432/test?sslmode=disable. Without one it skips
// the test, or fails it where LEAT_TEST_REQUIRE names postgres.
func Postgres(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "postgres", "LEAT_TEST_POSTGRES_URL")
}

// MySQL returns the URL of a MariaDB or MySQL the test may use, like
// mysql://root@127.0.0.1:3306/test. Without one it skips the test, or fails it
// where LEAT_TEST_REQUIRE names mariadb.
func MySQL(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "mariadb", "LEAT_TEST_MYSQL_URL")
}

func serviceURL(t testing.TB, service, variable string) string {
	t.Helper()
	if url := os.Getenv(variable); url != "" {
		return url
	}
	const fix = "set %s or run: go run ./internal/check"
	if required := strings.Split(os.Getenv("LEAT_TEST_REQUIRE"), ","); slices.Contains(required, service) {
		t.Fatalf("LEAT_TEST_REQUIRE names "+service+", but it has no URL; "+fix, variable)
	}
	t.Skipf("no "+service+" to test with; "+fix, variable)
	return ""
}
