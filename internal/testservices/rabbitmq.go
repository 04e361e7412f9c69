package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
)

func rabbitmqService() service {
	return service{
		name:      "rabbitmq",
		variable:  "LEAT_TEST_RABBITMQ_URL",
		standard:  []string{"amqp://guest:guest@127.0.0.1:5672/"},
		account:   "rabbitmq",
		programs:  []string{"epmd", "rabbitmq-server"},
		debian:    "rabbitmq-server",
		api:       "15672",
		handshake: greetRabbitMQ,
		complete:  hasManagement,
		start:     startRabbitMQ,
	}
}

// greetRabbitMQ connects and opens a channel: a node that is still booting accepts
// connections, but no channels.
func greetRabbitMQ(ctx context.Context, url string) (version string, err error) {
	conn, err := amqp.DialConfig(url, amqp.Config{Dial: dialWithin(ctx)})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Channel(); err != nil {
		return "", err
	}
	version, _ = conn.Properties["version"].(string)
	return version, nil
}

// hasManagement returns an error if a broker has no management API, which tests of operators' views need.
func hasManagement(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("not a URL")
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	api := "http://" + net.JoinHostPort(u.Hostname(), "15672")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/api/whoami", nil)
	if err != nil {
		return err
	}
	password, _ := u.User.Password()
	request.SetBasicAuth(u.User.Username(), password)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("it has no management API (rabbitmq-plugins enable rabbitmq_management): %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("its management API answers %s", response.Status)
	}
	return nil
}

// dialWithin closes the connection when the context is done, so that a server that
// accepts the connection and does not respond can't block.
func dialWithin(ctx context.Context) func(network, address string) (net.Conn, error) {
	return func(network, address string) (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	}
}

// startRabbitMQ starts a node that shares nothing with an installed RabbitMQ: neither
// the node name, the cookie and the configuration, nor epmd, Erlang's name server,
// which a node would otherwise start as a daemon that runs on after it.
func startRabbitMQ(ctx context.Context, box *sandbox) (string, error) {
	ports, err := freePorts(4)
	if err != nil {
		return "", err
	}
	port, distribution, epmd := strconv.Itoa(ports[0]), strconv.Itoa(ports[1]), strconv.Itoa(ports[2])
	management := strconv.Itoa(ports[3])
	for name, text := range map[string]string{
		"rabbitmq.conf":   "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = " + management + "\ncollect_statistics_interval = 100\n",
		"enabled_plugins": "[rabbitmq_management].",
	} {
		if _, err := box.write(name, text); err != nil {
			return "", err
		}
	}
	if err := box.launch("epmd", "-address", "127.0.0.1", "-port", epmd); err != nil {
		return "", err
	}
	if err := awaitPort(ctx, "127.0.0.1:"+epmd); err != nil {
		return "", fmt.Errorf("epmd: %w", err)
	}
	box.env = append(box.env,
		"RABBITMQ_NODENAME=leat"+port+"@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT="+port,
		"RABBITMQ_DIST_PORT="+distribution,
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_EPMD_PORT="+epmd,
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_CONF_ENV_FILE="+box.path("no-rabbitmq-env.conf"),
		"RABBITMQ_CONFIG_FILE="+box.path("rabbitmq.conf"),
		"RABBITMQ_CONFIG_FILES="+box.path("no-conf.d"),
		"RABBITMQ_ADVANCED_CONFIG_FILE="+box.path("no-advanced"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+box.path("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE="+box.path("mnesia"),
		"RABBITMQ_LOG_BASE="+box.path("log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE="+box.path("pid"),
	)
	err = box.launch("rabbitmq-server")
	return "amqp://guest:guest@127.0.0.1:" + port + "/?management=http://127.0.0.1:" + management, err
}

func awaitPort(ctx context.Context, address string) error {
	return poll(ctx, func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
