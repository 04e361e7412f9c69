package fxmodule_test

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/transports/amqp"
)

func TestConfigs_logNoSecrets(t *testing.T) {
	var text bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&text, nil))
	logger.Info("configuration", "fx", fxmodule.Config{
		URL: "amqp://user:S3cret@host/vhost", RedisURL: "redis://:S3cret@host/0", OutboxURL: "postgres://u:S3c#S3cret@host/db",
		InboxURL: "mysql://h/db?password=S3cret", AdminToken: "S3cret",
	}, "amqp", amqp.Config{Host: "host", Username: "user", Password: "S3cret"})
	require.NotContains(t, text.String(), "S3cret")
	require.Contains(t, text.String(), "fx.url=amqp://host/vhost")
	require.Contains(t, text.String(), `fx.outbox_url="not a URL"`)
	require.Contains(t, text.String(), "fx.inbox_url=mysql://h/db")
	require.Contains(t, text.String(), "amqp.host=host")
}
