// Package faults tests the outbox between real services, PostgreSQL and RabbitMQ, while everything
// around it dies: no ghosts (events without their row), no zombies (rows without their event), and the
// order of each key. It has tests only.
package faults
