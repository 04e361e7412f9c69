package testenv_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestService_usesItsVariable(t *testing.T) {
	for variable, url := range lookups() {
		t.Setenv(variable, "x://"+variable)
		require.Equal(t, "x://"+variable, url(t))
	}
}

func TestService_missingSkipsWithTheFix(t *testing.T) {
	t.Setenv("LEAT_TEST_REQUIRE", "")
	for variable, url := range lookups() {
		t.Setenv(variable, "")
		verdict := ask(t, url)
		require.True(t, verdict.skipped)
		require.Contains(t, verdict.message, "set "+variable+" or run: go run ./internal/check")
	}
}

func TestService_missingFailsIfRequired(t *testing.T) {
	t.Setenv("LEAT_TEST_REQUIRE", "redis,postgres,mariadb,rabbitmq")
	for variable, url := range lookups() {
		t.Setenv(variable, "")
		verdict := ask(t, url)
		require.True(t, verdict.failed)
		require.Contains(t, verdict.message, "set "+variable+" or run: go run ./internal/check")
	}
}

func lookups() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{
		"LEAT_TEST_REDIS_URL":    testenv.Redis,
		"LEAT_TEST_RABBITMQ_URL": testenv.RabbitMQ,
		"LEAT_TEST_POSTGRES_URL": testenv.Postgres,
		"LEAT_TEST_MYSQL_URL":    testenv.MySQL,
	}
}

// ask returns the calls that a lookup makes on its test, without ending this test.
func ask(t *testing.T, url func(testing.TB) string) *verdict {
	v := &verdict{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		url(v)
	}()
	<-ended
	return v
}

type verdict struct {
	testing.TB
	skipped, failed bool
	message         string
}

func (v *verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) {
	v.skipped, v.message = true, fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed, v.message = true, fmt.Sprintf(format, args...)
	runtime.Goexit()
}
