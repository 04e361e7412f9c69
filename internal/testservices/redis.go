package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

func redisService() service {
	return service{
		name:      "redis",
		variable:  "LEAT_TEST_REDIS_URL",
		standard:  []string{"redis://127.0.0.1:6379/0"},
		account:   "redis",
		programs:  []string{"redis-server"},
		debian:    "redis-server",
		handshake: greetRedis,
		start:     startRedis,
	}
}

func greetRedis(ctx context.Context, url string) (version string, err error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return "", err
	}
	options.MaxRetries, options.DialerRetries = -1, 1 // the caller decides about further tries
	client := redis.NewClient(options)
	defer client.Close()

	if err := client.Ping(ctx).Err(); err != nil {
		return "", err
	}
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(info, "redis_version:")
	version, _, _ = strings.Cut(rest, "\r\n")
	return version, nil
}

func startRedis(_ context.Context, box *sandbox) (string, error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	err = box.launch("redis-server",
		"--bind", "127.0.0.1", "--port", strconv.Itoa(ports[0]), "--dir", box.dir,
		"--save", "", "--appendonly", "no")
	return fmt.Sprintf("redis://127.0.0.1:%d/0", ports[0]), err
}
