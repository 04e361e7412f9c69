// Package faults tests the outbox with PostgreSQL and RabbitMQ while services and brokers fail. It checks that there is no
// event without its row, no row without its event, and that the events of a key are in order. It has tests only.
package faults
