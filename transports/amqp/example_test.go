package amqp_test

import (
	"fmt"
	"net/url"

	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"

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

// A service that runs plain Watermill keeps its configuration, and its queues, when it moves to leat. With fx,
// fxmodule.UseTransport takes a function that returns amqp.New(ctx, cfg).
func ExampleFromWatermill() {
	old := stock.NewDurablePubSubConfig("amqp://shop:secret@rabbit:5672/orders", stock.GenerateQueueNameTopicNameWithSuffix("ledger"))
	cfg, err := amqp.FromWatermill(old, nil)
	fmt.Println(err)
	fmt.Println(cfg.LogValue())
	// Output:
	// <nil>
	// [host=rabbit:5672 vhost=orders tls=false exchange= queue= topology=watermill]
}
