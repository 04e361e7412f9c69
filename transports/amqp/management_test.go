//go:build unix

package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// operator opens RabbitMQ as an operator's tool does.
func operator(t testing.TB, raw string, changes ...func(*amqp.Config)) (*amqp.Transport, *testenv.Buffer) {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	cfg, err := amqp.ConfigFromURL(u)
	require.NoError(t, err)
	log := new(testenv.Buffer)
	bePatient(&cfg)
	cfg.Operator, cfg.Logger = true, slog.New(slog.NewTextHandler(log, nil))
	for _, change := range changes {
		change(&cfg)
	}
	transport, err := amqp.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { closeAll(t, transport) })
	return transport, log
}

// managed returns a virtual host of its own on a broker with the management API, and its URL.
func managed(t *testing.T) (b *broker, vhost, raw string) {
	t.Helper()
	b = calmBroker(t)
	vhost, raw = b.addVhost(t)
	return b, vhost, raw
}

func (b *broker) addVhost(t testing.TB) (vhost, raw string) {
	t.Helper()
	vhost = strings.ReplaceAll(unique("m"), ".", "")
	b.call(t, http.MethodPut, "/api/vhosts/"+vhost, "{}")
	t.Cleanup(func() { b.call(t, http.MethodDelete, "/api/vhosts/"+vhost, "") })
	b.call(t, http.MethodPut, "/api/permissions/"+vhost+"/guest", anything)
	return vhost, b.url() + vhost + "?management=" + b.management()
}

const anything = `{"configure":".*","write":".*","read":".*"}`

// call returns quicker than ctl.
func (b *broker) call(t testing.TB, method, path, body string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(context.Background(), method, b.management()+path, strings.NewReader(body))
	require.NoError(t, err)
	request.SetBasicAuth("guest", "guest")
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Less(t, response.StatusCode, 300, "%s %s: %s", method, path, text)
	return string(text)
}

func (b *broker) names(t testing.TB, kind, vhost string) string {
	return b.call(t, http.MethodGet, "/api/"+kind+"/"+vhost+"?columns=name", "")
}

func (b *broker) policy(t testing.TB, kind, vhost, name, pattern, definition string) (remove func()) {
	path := "/api/" + kind + "/" + vhost + "/" + name
	b.call(t, http.MethodPut, path, `{"pattern":`+strconv.Quote(pattern)+`,"definition":`+definition+`,"apply-to":"queues"}`)
	return func() { b.call(t, http.MethodDelete, path, "") }
}

// The management API tells every count, of groups that have left no note as well, and nothing is made or taken for it.
func TestManagement_showsGroupsWithoutQuestionMarks(t *testing.T) {
	b, vhost, raw := managed(t)
	tool, log := operator(t, raw)
	groups, err := tool.Groups(t.Context())
	require.NoError(t, err)
	require.Empty(t, groups)
	require.Equal(t, "[]", b.names(t, "queues", vhost), "a tool makes nothing")
	require.NotContains(t, b.names(t, "exchanges", vhost), "events")

	service := open(t, raw)
	other := open(t, withOptions(raw, "exchange=other"))
	sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1", "order.>", ">", "a.*.c"}, Concurrency: 1}
	feed := subscribe(t, service, sub)
	keyed := driver.Subscription{Group: "shop.mail", Topics: []string{"mail.v1"}, Concurrency: 1, Order: driver.OrderedByKey, Park: true}
	mail := subscribe(t, service, keyed)
	subscribe(t, other, driver.Subscription{Group: "other.group", Topics: []string{"x"}, Concurrency: 1})
	publish(t, service, "order.paid.v1", "bad", "later", "a", "b", "c")
	poison(t, next(t, feed))
	require.NoError(t, next(t, feed).Settler.Redeliver(time.Hour))
	publishKeyed(t, service, "mail.v1", "k/1", "k/2", "k/3")
	poison(t, next(t, mail))
	waiting, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // k/2 and k/3 are put behind k/1
		defer close(ended)
		_, _ = mail.Next(waiting)
	}()

	eventually(t, "all is counted", func() bool {
		info, held := groupOf(t, tool, "shop.ledger"), groupOf(t, tool, "shop.mail")
		return info.Waiting+info.InFlight == 6 && info.Poisoned == 1 && info.Consumers == 1 &&
			held.Poisoned == 1 && held.Parked == 2 && held.Delayed == 0 && held.Consumers == 1
	})
	stop()
	<-ended
	closeAll(t, service, other)
	eventually(t, "its consumer is gone", func() bool {
		info := groupOf(t, tool, "shop.ledger")
		return info.Waiting == 6 && info.InFlight == 0 && info.Consumers == 0
	})
	groups, err = tool.Groups(t.Context())
	require.NoError(t, err)
	require.Len(t, groups, 2, "those of the exchange")
	require.Equal(t, []string{">", "a.*.c", "order.>", "order.paid.v1"}, groups[0].Topics)
	require.Equal(t, []string{"shop.mail"}, topicsOf(t, tool)["mail.v1"])
	require.Empty(t, log.String())
}

func poison(t testing.TB, d *driver.Delivery) {
	t.Helper()
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
}

// More queues than a page holds are all seen.
func TestManagement_readsAllPages(t *testing.T) {
	_, _, raw := managed(t)
	tool, _ := operator(t, raw)
	const n = 501
	withBroker(t, raw, func(ch *rabbit.Channel) {
		for i := range n {
			group := fmt.Sprintf("g%03d", i)
			_, err := ch.QueueDeclare(group, true, false, false, false, rabbit.Table{
				"x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": group + ".poison",
			})
			require.NoError(t, err)
		}
	})
	eventually(t, "all are seen", func() bool { // the broker may answer from a cache
		groups, err := tool.Groups(t.Context())
		require.NoError(t, err)
		return len(groups) == n
	})
}

// What is wrong with the topology is found and left as it is; with policies, the policy is named.
func TestDiagnose_findsWhatIsBroken(t *testing.T) {
	b, vhost, raw := managed(t)
	tool, _ := operator(t, raw)
	service := open(t, raw)
	sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Delays: []time.Duration{5 * time.Second}}
	keyed := driver.Subscription{Group: "shop.mail", Topics: []string{"mail.v1"}, Concurrency: 1, Order: driver.OrderedByKey, Park: true}
	feed, mail := subscribe(t, service, sub), subscribe(t, service, keyed)
	require.NoError(t, service.Publish(t.Context(), "order.paid.v1", delayed("order.paid.v1", "m", time.Hour)))
	publish(t, service, "order.paid.v1", "bad", "a")
	publishKeyed(t, service, "mail.v1", "k/1")
	poison(t, next(t, feed))
	poison(t, next(t, mail))
	publishKeyed(t, service, "mail.v1", "k/2")
	eventually(t, "it is parked", func() bool { return service.HeldForTest() == 2 })
	eventually(t, "a sound broker is found sound", func() bool {
		for _, f := range tool.Diagnose(t.Context()) {
			if f.Err != nil {
				t.Logf("%s: %s", f.Check, f.Err)
				return false
			}
		}
		return true
	})
	queues := b.names(t, "queues", vhost)
	closeAll(t, service)

	check := func(name, check, fault, fix string) {
		t.Helper()
		var seen []string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			seen = nil
			for _, f := range tool.Diagnose(t.Context()) {
				if f.Err == nil {
					continue
				}
				require.NotEmpty(t, f.Fix, f.Err)
				seen = append(seen, fmt.Sprintf("%s: %s; %s", f.Check, f.Err, f.Fix))
				if f.Check == check && strings.Contains(f.Err.Error(), fault) && strings.Contains(f.Fix, fix) {
					return
				}
			}
		}
		t.Errorf("%s is not found in:\n%s", name, strings.Join(seen, "\n"))
	}
	check("nobody consumes", "group shop.ledger", "no process consumes it, and 1 messages wait", "start the service")
	check("nobody leads", "group shop.mail", "messages are parked, and no process leads", "takes the lead")
	// Quorum queues tell their policies every five seconds, and so policies are looked for together.
	type fault struct{ policy, text string }
	for _, round := range []struct {
		policies []struct{ kind, name, pattern, definition string }
		faults   []fault
	}{
		{[]struct{ kind, name, pattern, definition string }{
			{"policies", "parked", `^shop\.mail\.parked.*$`, `{"message-ttl":600000000}`},
			{"policies", "ttl", `^shop\.mail$`, `{"message-ttl":600000000}`},
			{"policies", "length", `^shop\.ledger\.poison$`, `{"max-length":1000}`},
			{"policies", "unused", `^shop\.ledger\.retry.*$`, `{"expires":600000000}`},
			{"operator-policies", "op", `^shop\.mail\.poison$`, `{"max-length":5}`},
		}, []fault{
			{"parked", "applies to shop.mail.parked.1a, shop.mail.parked.1b: moves messages to shop.mail.poison before they are handled"},
			{"ttl", "applies to shop.mail: moves messages to shop.mail.poison before they are handled"},
			{"length", "max-length 1000 applies to shop.ledger.poison: deletes messages beyond it"},
			{"unused", "expires 600000000 applies to shop.ledger.retry.1s, shop.ledger.retry.5s: deletes the queue"},
			{"op (operator policy)", "max-length 5 applies to shop.mail.poison"},
		}},
		{[]struct{ kind, name, pattern, definition string }{{"policies", "limit", `^shop\..*$`, `{"delivery-limit":3}`}}, []fault{
			{"limit", "delivery-limit 3 applies to shop.ledger.poison, shop.mail.poison: deletes"},
		}},
	} {
		var remove []func()
		for _, p := range round.policies {
			remove = append(remove, b.policy(t, p.kind, vhost, p.name, p.pattern, p.definition))
		}
		for _, f := range round.faults {
			check(f.policy, "policy "+f.policy, f.text, "exclude leat's queues by its pattern")
		}
		for _, remove := range remove {
			remove()
		}
	}
	withBroker(t, raw, func(ch *rabbit.Channel) {
		require.NoError(t, ch.QueueUnbind("shop.ledger", "order.paid.v1", "events", nil))
		check("a missing binding", "group shop.ledger", `queue "shop.ledger" is not bound to exchange "events"`, "binds the queue")
		require.NoError(t, ch.QueueUnbind("shop.ledger.retry.1s", "shop.ledger", "leat.delay.quorum.redeliver.out", nil))
		check("a missing binding of delays", "group shop.ledger", `"shop.ledger.retry.1s" is not bound`, "it makes the binding")
		remove := func(name string) {
			_, err := ch.QueueDelete(name, false, false, false)
			require.NoError(t, err)
		}
		remove("shop.ledger.retry.5s")
		_, err := ch.QueueDeclare("shop.ledger.retry.5s", true, false, false, false, rabbit.Table{
			"x-message-ttl": 99, "x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "shop.ledger",
		})
		require.NoError(t, err)
		check("foreign arguments", "group shop.ledger", `queue "shop.ledger.retry.5s" has other arguments`, "delete the queue when it is empty")
		check("which they are", "group shop.ledger", `x-message-ttl is 99; it should be 5000`, "")
		remove("shop.mail.keys")
		check("a missing queue", "group shop.mail", `queue "shop.mail.keys" does not exist`, "restart a process")
		remove("shop.ledger")
		check("messages without their group's queue", "group shop.ledger", "its queue does not exist, and messages are left: 1 in shop.ledger.poison", "start a process")
		remove("leat.delay.quorum.redeliver.07")
		check("a missing level", "queues for delays leat.delay.quorum.redeliver.*", "missing: queue leat.delay.quorum.redeliver.07", "within five minutes")
		require.NoError(t, ch.ExchangeUnbind("events", "", "leat.delay.quorum.publish.out.events", false, nil))
		check("a missing binding of levels", "queues for delays leat.delay.quorum.publish.*.events", "binding of exchange events", "with a delay")
		require.NoError(t, ch.ExchangeDelete("events", false, false))
		check("a missing exchange", "exchange events", "it does not exist", "start or restart a service")
	})
	left := b.names(t, "queues", vhost)
	require.Equal(t, strings.Count(queues, "name")-3, strings.Count(left, "name"), "nothing was made: %s", left)
}

func TestDiagnose_findsAlarms(t *testing.T) {
	b := ownBroker(t)
	_, raw := b.addVhost(t)
	tool, _ := operator(t, raw)
	defer b.memoryAlarm(t)()
	eventually(t, "an alarm is found", func() bool {
		for _, f := range tool.Diagnose(t.Context()) {
			if strings.HasPrefix(f.Check, "alarm on node leat") && strings.Contains(fmt.Sprint(f.Err), "low on memory") {
				return true
			}
		}
		return false
	})
}

// Who may not read the API is told which tag that takes.
func TestManagement_namesTheTagThatIsMissing(t *testing.T) {
	b, vhost, raw := managed(t)
	service := open(t, raw)
	subscribe(t, service, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
	closeAll(t, service)
	tag := func(tags string) {
		b.call(t, http.MethodPut, "/api/users/"+vhost, `{"password":"s3cret","tags":"`+tags+`"}`)
	}
	tag("")
	defer b.call(t, http.MethodDelete, "/api/users/"+vhost, "")
	b.call(t, http.MethodPut, "/api/permissions/"+vhost+"/"+vhost, anything)
	as := func(user, password string) string {
		return bare(raw) + "?management=" + strings.Replace(b.management(), "://", "://"+user+":"+password+"%40", 1)
	}
	tool, log := operator(t, as(vhost, "s3cret"))
	_, err := tool.Groups(t.Context())
	require.ErrorContains(t, err, "it needs the tag management")
	failed, _ := errors.AsType[*amqp.ManagementError](err)
	require.Contains(t, failed.Fix(), "rabbitmqctl set_user_tags "+vhost+" management")
	f := findingOf(t, tool.Diagnose(t.Context()), "management API")
	require.ErrorContains(t, f.Err, "is not allowed to read it: it needs the tag management")

	tag("management")
	require.Zero(t, groupOf(t, tool, "shop.ledger").InFlight)
	f = findingOf(t, tool.Diagnose(t.Context()), "alarms and cluster")
	require.Contains(t, f.Text, "it needs the tag monitoring")
	require.Empty(t, log.String())

	wrong, log := operator(t, as(vhost, "wr0ng"))
	_, err = wrong.Groups(t.Context())
	require.ErrorContains(t, err, "it refuses the login of user "+vhost)
	require.NotContains(t, err.Error(), "wr0ng")
	for _, f := range wrong.Diagnose(t.Context()) {
		require.NotContains(t, fmt.Sprint(f), "wr0ng")
	}
	require.Empty(t, log.String())
}

// An API that answers nonsense, or not at all, is given up in time.
func TestManagement_badAnswers(t *testing.T) {
	broker := sharedBroker(t)
	say := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		}
	}
	for name, c := range map[string]struct {
		api    http.HandlerFunc
		reason string
	}{
		"refused login":  {say(401, `{"error":"not_authorized","reason":"Login failed"}`), "it refuses the login of user ops"},
		"no JSON in 401": {say(401, `<html>`), "it refuses the login of user ops"},
		"no tag":         {say(401, `{"reason":"Not management user"}`), "it needs the tag management"},
		"forbidden":      {say(403, `{}`), "it needs the tag management"},
		"not there":      {say(404, `{}`), "it is no management API of RabbitMQ, or the virtual host"},
		"broken":         {say(500, `boom`), "it answers 500 Internal Server Error"},
		"elsewhere":      {http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound).ServeHTTP, "it answers 302 Found"},
		"no JSON":        {say(200, `<html>`), "its answer can't be read"},
		"no list":        {say(200, `{"items":{}}`), "its answer can't be read"},
		"cut off":        {say(200, `[{"name":"a"}`), "its answer can't be read"},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("["))
			row := []byte(`{"name":"` + strings.Repeat("x", 1000) + `"},`)
			for range 2 << 10 {
				if _, err := w.Write(row); err != nil {
					return
				}
			}
		}, "an answer has more than 1 MiB"},
		"slow": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			api := httptest.NewServer(c.api)
			t.Cleanup(api.Close)
			tool, _ := operator(t, withOptions(bare(broker), "management="+strings.Replace(api.URL, "://", "://ops:s3cret%40", 1)), amqp.SmallAnswers)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if name == "slow" {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
			}
			defer cancel()
			_, err := tool.Groups(ctx)
			require.ErrorContains(t, err, c.reason)
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
}

// What the broker of these tests does not have is found as well: parts of a cluster that have lost contact, a feature flag
// that is off, and versions with which ordered groups stand still.
func TestDiagnose_clustersFlagsAndVersions(t *testing.T) {
	sharedBroker(t)
	raw := testenv.RabbitMQVhost(t)
	u, err := url.Parse(raw)
	require.NoError(t, err)
	service := open(t, raw)
	ordered := driver.Subscription{Group: "shop.mail", Topics: []string{"mail.v1"}, Concurrency: 1, Order: driver.OrderedStrictly}
	subscribe(t, service, ordered)
	ordered.Group, ordered.Order = "shop.ledger", driver.Unordered
	subscribe(t, service, ordered)

	answers := make(map[string]string)
	base, err := url.Parse(u.Query().Get("management"))
	require.NoError(t, err)
	others := httputil.NewSingleHostReverseProxy(base)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer, ok := answers[r.URL.Path]; ok {
			_, _ = w.Write([]byte(answer))
			return
		}
		others.ServeHTTP(w, r)
	}))
	t.Cleanup(api.Close)
	diagnose := func(host string) (string, map[string]driver.Finding) {
		var version string
		own := *u
		own.Host, own.RawQuery = host, ""
		conn, err := rabbit.Dial(own.String())
		require.NoError(t, err)
		version, _ = conn.Properties["version"].(string)
		require.NoError(t, conn.Close())
		tool, _ := operator(t, own.String()+"?management="+api.URL)
		found := make(map[string]driver.Finding)
		for _, f := range tool.Diagnose(t.Context()) {
			found[f.Check] = f
		}
		return version, found
	}

	version, found := diagnose(u.Host)
	require.NoError(t, found["alarms and cluster"].Err)
	require.Contains(t, found["alarms and cluster"].Text, "1 nodes, no alarm, no partition")
	require.NotContains(t, found, "partition handling", "one node has no partitions")
	require.NotContains(t, found, "version of the broker for ordered groups")
	answers["/api/nodes"] = `[{"name":"a@x","running":true,"partitions":["b@x"]},{"name":"b@x","running":true,"partitions":["a@x"]},{"name":"c@x","running":false}]`
	old := strings.HasPrefix(version, "3.")
	for state, want := range map[string]string{
		`[]`: "it is missing", `[{"name":"stream_queue","state":"disabled"}]`: "it is disabled", `[{"name":"stream_queue","state":"enabled"}]`: "",
	} {
		answers["/api/feature-flags"] = state
		_, found = diagnose(u.Host)
		f, there := found["feature flag stream_queue"]
		require.Equal(t, old, there, "RabbitMQ 4 always has it")
		if want != "" && there {
			require.ErrorContains(t, f.Err, want+": quorum queues pass delayed messages on at most once")
			require.Equal(t, "rabbitmqctl enable_feature_flag stream_queue", f.Fix)
		} else {
			require.NoError(t, f.Err)
		}
	}
	require.ErrorContains(t, found["node a@x"].Err, "it has lost contact with b@x")
	require.Contains(t, found["node a@x"].Fix, "restart the nodes of the smaller part, and set cluster_partition_handling to pause_minority")
	require.ErrorContains(t, found["node c@x"].Err, "it does not run")
	require.NotContains(t, found, "alarms and cluster")
	if old {
		require.Contains(t, found["partition handling"].Text, "With the default, ignore, the parts of a cluster stay separate")
		require.Contains(t, found["partition handling"].Text, "set cluster_partition_handling = pause_minority")
	}

	proxy := newSickBroker(t, u.Host)
	proxy.version = [2][]byte{[]byte(version), fmt.Appendf(nil, "4.3.%0*d", len(version)-len("4.3."), 5)}
	version, found = diagnose(proxy.listener.Addr().String())
	f := found["version of the broker for ordered groups"]
	require.ErrorContains(t, f.Err, "on RabbitMQ "+version)
	require.ErrorContains(t, f.Err, "may stop delivering after a consumer timed out: shop.mail")
	require.NotContains(t, f.Err.Error(), "shop.ledger")
	require.Contains(t, f.Fix, "upgrade the broker to 4.3.6 or later")
	require.NotContains(t, found, "partition handling", "4.3 has none")
	closeAll(t, service)
}

func TestConfigFromURL_management(t *testing.T) {
	for raw, want := range map[string]string{
		"amqp://h/?management=http://ops:pw%40m:15672":     "",
		"amqp://h/?management=https://m":                   "",
		"amqp://h/?management=m:15672":                     "not a URL of a management API",
		"amqp://h/?management=ftp://s3cret%40m":            "not a URL of a management API",
		"amqp://h/?management=http://s3cret%2525%25zz%40m": "can't be parsed",
	} {
		u, err := url.Parse(raw)
		require.NoError(t, err)
		cfg, err := amqp.ConfigFromURL(u)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = amqp.New(ctx, cfg)
		if want == "" {
			require.NotContains(t, err.Error(), "management")
			continue
		}
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

func TestDiagnose_knowsTheVersionsThatStandStill(t *testing.T) {
	for version, want := range map[string]bool{
		"4.3.0": true, "4.3.5": true, "4.3.5-rc.1": true, "4.3.6": false, "4.3.10": false, "4.30.1": false, "4.2.1": false, "3.10.8": false, "4.3.": false, "": false,
	} {
		require.Equal(t, want, amqp.StandsStill(version), version)
	}
}
