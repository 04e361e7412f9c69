package prommetrics

import (
	"cmp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
)

// WithOTelNames adds the messaging metrics of OpenTelemetry's semantic conventions 1.43.0, under the names that they have
// in Prometheus, so that dashboards made for other instrumentations show leat as well. system is their label
// messaging_system, such as "rabbitmq"; "" means "leat".
func WithOTelNames(system string) Option {
	system = cmp.Or(system, "leat")
	return func(o *Observer) { o.otel = newOTelMetrics(system) }
}

// otelMetrics are the metrics of OpenTelemetry's conventions. All methods work on nil, and then do nothing.
type otelMetrics struct {
	operation, process     *prometheus.HistogramVec
	sentMessages, consumed *prometheus.CounterVec
}

func newOTelMetrics(system string) *otelMetrics {
	buckets := []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
	constant := prometheus.Labels{"messaging_system": system}
	publishing := []string{"messaging_operation_name", "messaging_operation_type", "messaging_destination_name", "error_type"}
	consuming := []string{"messaging_operation_name", "messaging_consumer_group_name", "messaging_destination_name", "error_type"}
	return &otelMetrics{
		operation: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "messaging_client_operation_duration_seconds", Help: "Duration of messaging operations initiated by a client.",
			Buckets: buckets, ConstLabels: constant,
		}, publishing),
		process: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "messaging_process_duration_seconds", Help: "Duration of processing operations.", Buckets: buckets, ConstLabels: constant,
		}, consuming),
		sentMessages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "messaging_client_sent_messages_total", Help: "Number of messages that were attempted to be sent.", ConstLabels: constant,
		}, []string{"messaging_operation_name", "messaging_destination_name", "error_type"}),
		consumed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "messaging_client_consumed_messages_total", Help: "Number of messages that were delivered.", ConstLabels: constant,
		}, consuming),
	}
}

func (m *otelMetrics) collectors() []prometheus.Collector {
	if m == nil {
		return nil
	}
	return []prometheus.Collector{m.operation, m.process, m.sentMessages, m.consumed}
}

// otelSent is what one topic's publications are counted in; its zero value counts nothing.
type otelSent struct {
	messages prometheus.Counter
	took     prometheus.Observer
}

func (m *otelMetrics) sent(topic, errorType string) otelSent {
	if m == nil {
		return otelSent{}
	}
	return otelSent{m.sentMessages.WithLabelValues("send", topic, errorType), m.operation.WithLabelValues("send", "send", topic, errorType)}
}

func (s otelSent) observe(messages int, took time.Duration) {
	if s.messages == nil {
		return
	}
	s.messages.Add(float64(messages))
	s.took.Observe(took.Seconds())
}

// otelProcessed is what one group's deliveries of a topic with one outcome are counted in; its zero value counts nothing.
type otelProcessed struct {
	messages prometheus.Counter
	took     prometheus.Observer
}

func (m *otelMetrics) processed(group, topic string, outcome bus.Outcome) otelProcessed {
	if m == nil {
		return otelProcessed{}
	}
	errorType := string(outcome) // bounded, which the types of errors are not
	if outcome == bus.Handled || outcome == bus.Duplicate {
		errorType = ""
	}
	return otelProcessed{
		messages: m.consumed.WithLabelValues("process", group, topic, errorType),
		took:     m.process.WithLabelValues("process", group, topic, errorType),
	}
}

func (p otelProcessed) observe(took time.Duration) {
	if p.messages == nil {
		return
	}
	p.messages.Inc()
	p.took.Observe(took.Seconds())
}
