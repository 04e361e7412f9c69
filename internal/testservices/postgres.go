package main

import (
	"context"
	"fmt"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"
)

func postgresService() service {
	return service{
		name:     "postgres",
		variable: "LEAT_TEST_POSTGRES_URL",
		standard: []string{
			"postgres://postgres@127.0.0.1:5432/test?sslmode=disable",
			"postgres://postgres@127.0.0.1:5432/postgres?sslmode=disable",
		},
		account:   "postgres",
		programs:  []string{"initdb", "postgres"},
		debian:    "postgresql",
		handshake: greetPostgres,
		start:     startPostgres,
	}
}

func greetPostgres(ctx context.Context, url string) (version string, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "SHOW server_version").Scan(&version)
	return version, err
}

func startPostgres(ctx context.Context, box *sandbox) (string, error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	data := box.path("data")
	if err := box.run(ctx, "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"); err != nil {
		return "", err
	}
	box.stopWith = syscall.SIGINT // "fast": SIGTERM would wait for clients, SIGKILL leave shared memory behind
	err = box.launch("postgres", "-D", data, "-p", strconv.Itoa(ports[0]),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=300",
		"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off") // its data never outlives it
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", ports[0]), err
}
