package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Redis returns the URL of a Redis the test may use, like
// redis://127.0.0.1:6379/0. Without one it skips the test, or fails it if
// LEAT_TEST_REQUIRE has redis.
func Redis(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "redis", "LEAT_TEST_REDIS_URL")
}

// RabbitMQ returns the URL of a RabbitMQ the test may use, like
// amqp://guest:guest@127.0.0.1:5672/. Without one it skips the test, or fails
// it if LEAT_TEST_REQUIRE has rabbitmq.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "rabbitmq", "LEAT_TEST_RABBITMQ_URL")
}

// ManagedRabbitMQ returns the URL of a RabbitMQ with a management API, which the URL's option management names. Without
// one it skips the test, or fails it if LEAT_TEST_REQUIRE has rabbitmq.
func ManagedRabbitMQ(t testing.TB) string {
	t.Helper()
	u := managed(t)
	if err := manage(u, http.MethodGet, "/api/whoami", ""); err != nil {
		const fix = "enable the broker's plugin rabbitmq_management, or run: go run ./internal/check"
		if required("rabbitmq") {
			t.Fatalf("LEAT_TEST_REQUIRE names rabbitmq, but it has no management API (%v); "+fix, err)
		}
		t.Skipf("no management API (%v); "+fix, err)
	}
	return u.String()
}

// RabbitMQVhost returns the URL of ManagedRabbitMQ with a virtual host that only this test uses.
func RabbitMQVhost(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(ManagedRabbitMQ(t))
	if err != nil {
		t.Fatal(err)
	}
	name := "leat" + strconv.FormatUint(rand.Uint64(), 16)
	rights := "/api/permissions/" + name + "/" + url.PathEscape(u.User.Username())
	err = errors.Join(manage(u, http.MethodPut, "/api/vhosts/"+name, "{}"), manage(u, http.MethodPut, rights, `{"configure":".*","write":".*","read":".*"}`))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := manage(u, http.MethodDelete, "/api/vhosts/"+name, ""); err != nil {
			t.Error(err)
		}
	})
	own := *u
	own.Path = "/" + name
	return own.String()
}

// managed returns the broker's URL with the option management.
func managed(t testing.TB) *url.URL {
	u, err := url.Parse(RabbitMQ(t))
	if err != nil {
		t.Fatal("LEAT_TEST_RABBITMQ_URL is no URL")
	}
	if !u.Query().Has("management") {
		u.RawQuery = "management=http://" + net.JoinHostPort(u.Hostname(), "15672")
	}
	return u
}

// manage calls the management API of a broker.
func manage(broker *url.URL, method, path, body string) error {
	request, err := http.NewRequestWithContext(context.Background(), method, broker.Query().Get("management")+path, strings.NewReader(body))
	if err != nil {
		return errors.New("the option management is not a URL")
	}
	password, _ := broker.User.Password()
	request.SetBasicAuth(broker.User.Username(), password)
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	return nil
}

// Postgres returns the URL of a PostgreSQL the test may use, like
// postgres://postgres@127.0.0.1:5432/test?sslmode=disable. Without one it skips
// the test, or fails it if LEAT_TEST_REQUIRE has postgres.
func Postgres(t testing.TB) string {
	t.Helper()
	return serviceURL(t, "postgres", "LEAT_TEST_POSTGRES_URL")
}

// MySQL returns the URL of a MariaDB or MySQL the test may use, like
// mysql://root@127.0.0.1:3306/test. Without one it skips the test, or fails it
// if LEAT_TEST_REQUIRE has mariadb.
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
	if required(service) {
		t.Fatalf("LEAT_TEST_REQUIRE names "+service+", but it has no URL; "+fix, variable)
	}
	t.Skipf("no "+service+" to test with; "+fix, variable)
	return ""
}

// required reports whether a test must fail if it can't have a service.
func required(service string) bool {
	return slices.Contains(strings.Split(os.Getenv("LEAT_TEST_REQUIRE"), ","), service)
}
