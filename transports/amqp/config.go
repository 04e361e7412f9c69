package amqp

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/leatbus/leat/internal/urlopt"
)

// The URL schemes.
const (
	Scheme    = "amqp"
	SchemeTLS = "amqps"
)

// QueueType is the type of the queues that leat declares.
type QueueType string

// Quorum queues are replicated and count deliveries. Classic queues are neither, and lighter.
const (
	Quorum  QueueType = "quorum"
	Classic QueueType = "classic"
)

// Topology is the set of names on the broker.
type Topology string

const (
	// TopologyLeat is one topic exchange and a queue for each group.
	TopologyLeat Topology = "leat"
	// TopologyWatermill is the set of names that watermill-amqp's NewDurablePubSubConfig uses with
	// GenerateQueueNameTopicNameWithSuffix(group): a fanout exchange for each topic, and a classic
	// queue <topic>_<group> for each topic of a group. It supports no patterns. [FromWatermill] returns
	// a Config with the names of another configuration.
	TopologyWatermill Topology = "watermill"
)

// Auth is the authentication mechanism.
type Auth string

// Plain logs in with user and password, External with the client's certificate.
const (
	Plain    Auth = "plain"
	External Auth = "external"
)

// Declare decides whether leat declares exchanges and queues.
type Declare string

const (
	// DeclareMissing declares what is missing, at start and again after it was deleted.
	DeclareMissing Declare = "missing"
	// DeclareNothing checks at start that everything is there, for users without the right to configure.
	DeclareNothing Declare = "nothing"
)

const (
	defaultExchange       = "events"
	defaultHeartbeat      = 10 * time.Second
	defaultDialTimeout    = 5 * time.Second
	defaultConnectTimeout = 15 * time.Second

	defaultPrefetchBytes = 8 << 20

	maxHeartbeat = 18 * time.Hour // AMQP counts seconds in 16 bits
)

// Config configures a Transport. The zero Config is a broker on this machine with the defaults of the URL's options. Fields
// have the names of watermill-amqp's, if it has such fields.
type Config struct {
	Host     string // with or without port; or several, separated by commas, which are tried in random order
	Vhost    string
	Username string
	Password string
	Auth     Auth

	TLSConfig  *tls.Config // nil: no TLS, unless UseTLS or one of the files is given
	UseTLS     bool
	CACert     string // file; the system's authorities if it is empty
	Cert       string // file; with Key, the client's certificate
	Key        string // file
	ServerName string

	ExchangeName  string
	QueueType     QueueType
	Topology      Topology
	Declare       Declare
	PrefetchCount int  // 0: by the group's concurrency
	PrefetchBytes int  // of bodies that a group has in memory; one always fits. Others wait in temporary files. 0: 8 MiB
	StrictRoutes  bool // Publish fails for a message that no group has subscribed to; see [driver.UnroutableError]

	AppID          string
	ConnectionName string
	Heartbeat      time.Duration
	DialTimeout    time.Duration // one try, TLS and login included
	ConnectTimeout time.Duration // the first connection, all tries included; 0 means 15 s, unless the context has a deadline
	Logger         *slog.Logger  // connections lost and found; slog.Default if nil

	Management string // URL of the management API, by default on the port 15672 of Host, or 15671 with TLS, for operators only; services call it at start if it is set
	Operator   bool   // for operators' tools: declares nothing at start, and uses the management API

	managementMost int64         // bytes of one answer; for tests
	migrateEvery   time.Duration // for tests

	stock *stockNames // of TopologyWatermill

	ownKey []byte // marks the messages that this transport publishes
}

// LogValue keeps the user and the password out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("host", c.Host), slog.String("vhost", c.Vhost), slog.Bool("tls", c.UseTLS || c.TLSConfig != nil),
		slog.String("exchange", c.ExchangeName), slog.String("queue", string(c.QueueType)), slog.String("topology", string(c.Topology)))
}

// ConfigFromURL reads a URL; see the package documentation. An error never contains the password.
func ConfigFromURL(u *url.URL) (Config, error) {
	cfg := Config{Host: u.Host, Username: u.User.Username(), UseTLS: u.Scheme == SchemeTLS}
	cfg.Password, _ = u.User.Password()
	if len(u.Path) > 1 {
		cfg.Vhost = u.Path[1:]
	}
	o := urlopt.New(u)
	o.RequireHost(u)
	cfg.ExchangeName = o.String("exchange", "")
	cfg.QueueType = QueueType(o.Choice("queue", "", string(Quorum), string(Classic)))
	cfg.Topology = Topology(o.Choice("topology", "", string(TopologyLeat), string(TopologyWatermill)))
	cfg.PrefetchCount = o.Int("prefetch", 0, 1)
	cfg.StrictRoutes = o.StrictRoutes()
	if !o.Bool("declare", true) {
		cfg.Declare = DeclareNothing
	}
	cfg.AppID = o.String("app_id", "")
	cfg.ConnectionName = o.String("name", "")
	cfg.Heartbeat = o.Duration("heartbeat", 0)
	cfg.DialTimeout = o.Duration("dial_timeout", 0)
	cfg.ConnectTimeout = o.Duration("connect_timeout", 0)
	cfg.Auth = Auth(o.Choice("auth", "", string(Plain), string(External)))
	cfg.CACert = o.String("cacert", "")
	cfg.Cert = o.String("cert", "")
	cfg.Key = o.String("key", "")
	cfg.ServerName = o.String("server_name", "")
	cfg.Management = o.String("management", "")
	if u.Scheme == Scheme && (cfg.CACert != "" || cfg.Cert != "" || cfg.Key != "" || cfg.ServerName != "") {
		return Config{}, errors.New("cacert, cert, key and server_name are for amqps://; with amqp:// nothing would be encrypted")
	}
	return cfg, o.Err()
}

// withDefaults sets the fields that are zero, and validates all.
func (c Config) withDefaults() (Config, error) {
	program := filepath.Base(os.Args[0])
	if c.Username == "" || c.Username == "guest" {
		c.Username, c.Password = "guest", cmp.Or(c.Password, "guest")
	}
	c.Vhost = cmp.Or(c.Vhost, "/")
	c.Auth = cmp.Or(c.Auth, Plain)
	c.ExchangeName = cmp.Or(c.ExchangeName, defaultExchange)
	c.QueueType = cmp.Or(c.QueueType, Quorum)
	c.Topology = cmp.Or(c.Topology, TopologyLeat)
	c.Declare = cmp.Or(c.Declare, DeclareMissing)
	c.AppID = cmp.Or(c.AppID, program)
	c.ConnectionName = cmp.Or(c.ConnectionName, program)
	c.PrefetchBytes = cmp.Or(c.PrefetchBytes, defaultPrefetchBytes)
	c.Heartbeat = cmp.Or(c.Heartbeat, defaultHeartbeat)
	c.DialTimeout = cmp.Or(c.DialTimeout, defaultDialTimeout)
	c.UseTLS = c.UseTLS || c.TLSConfig != nil || c.CACert != "" || c.Cert != ""
	c.Host = withPorts(c.Host, c.UseTLS)
	if c.Topology == TopologyWatermill && c.stock == nil {
		c.stock = durableNames()
	}
	c.ownKey = newOwnKey()
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c, c.validate()
}

func (c Config) validate() error {
	switch {
	case len(c.ExchangeName) > maxNameBytes:
		return checkName("exchange", c.ExchangeName)
	case (c.Cert == "") != (c.Key == ""):
		return errors.New("cert and key belong together; give both files or none")
	case c.Auth == External && c.Cert == "" && c.TLSConfig == nil:
		return errors.New("auth=external logs in with the client's certificate; give cert and key")
	case c.Auth == Plain && c.Password == "":
		return fmt.Errorf("user %q has no password; write amqp://%s:password@host, or leave both out", c.Username, url.PathEscape(c.Username))
	case c.Heartbeat < time.Second || c.Heartbeat > maxHeartbeat:
		return fmt.Errorf("heartbeat is %s; it is between 1s and %s", c.Heartbeat, maxHeartbeat)
	case c.PrefetchCount < 0 || c.PrefetchCount > maxPrefetch:
		return fmt.Errorf("prefetch is %d; it is between 1 and %d", c.PrefetchCount, maxPrefetch)
	case c.PrefetchBytes < 0:
		return fmt.Errorf("PrefetchBytes is %d; it is at least 1", c.PrefetchBytes)
	case c.Management != "":
		_, err := parseManagement(c.Management)
		return err
	}
	return nil
}
