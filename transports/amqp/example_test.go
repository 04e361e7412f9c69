package amqp_test

import (
	"fmt"
	"net/url"

	"github.com/leatbus/leat/transports/amqp"
)

// ConfigFromURL is for programs that set what a URL can't say, as a TLS configuration in memory, and then call New. The password is
// not in the log.
func ExampleConfigFromURL() {
	u, err := url.Parse("amqp://shop:secret@rabbit-1,rabbit-2:5673/orders?queue=classic")
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg, err := amqp.ConfigFromURL(u)
	fmt.Println(err)
	fmt.Println(cfg.Host, cfg.Vhost, cfg.QueueType)
	fmt.Println(cfg.LogValue())
	// Output:
	// <nil>
	// rabbit-1,rabbit-2:5673 orders classic
	// [host=rabbit-1,rabbit-2:5673 vhost=orders tls=false exchange= queue=classic topology=]
}
