package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReport_masksPasswords(t *testing.T) {
	for address, want := range map[string]string{
		"amqp://guest:secret@127.0.0.1:5672/":     "amqp://guest:xxxxx@127.0.0.1:5672/",
		"redis://:secret@127.0.0.1:6379/0":        "redis://:xxxxx@127.0.0.1:6379/0",
		"postgres://me@h/d?PassWord=secret&a=b":   "postgres://me@h/d?PassWord=xxxxx&a=b",
		"postgres://postgres@h/d?sslmode=disable": "postgres://postgres@h/d?sslmode=disable",
		"amqp://guest:sec%ret@127.0.0.1:5672/":    "(not a URL)",
	} {
		require.Equal(t, want, mask(address))
	}
}

func TestReport_shortensVersions(t *testing.T) {
	for version, want := range map[string]string{
		"15.18 (Debian 15.18-0+deb12u1)": "15.18",
		"10.11.19-MariaDB-0+deb12u1":     "10.11.19",
		"7.0.15":                         "7.0.15",
	} {
		require.Equal(t, want, shortVersion(version))
	}
}

func TestReport_alignsLines(t *testing.T) {
	var text bytes.Buffer
	report(&text, answer{service: fake("redis"), version: "7.0.15", how: "standard port", url: "redis://127.0.0.1/0"})
	report(&text, answer{service: fake("rabbitmq"), version: "3.10.8", how: "private (6.9s)", url: "amqp://127.0.0.1/"})
	require.Equal(t, ""+
		"testservices  redis     7.0.15    standard port    redis://127.0.0.1/0\n"+
		"testservices  rabbitmq  3.10.8    private (6.9s)   amqp://127.0.0.1/\n", text.String())
}

func TestExports_areQuotedForTheShell(t *testing.T) {
	var text bytes.Buffer
	exports(&text, []answer{{service: fake("a"), url: "a://it's"}}, []string{"kill 1"})
	require.Equal(t, `export LEAT_TEST_A_URL='a://it'\''s'`+"\n# to stop: kill 1\n", text.String())
}
