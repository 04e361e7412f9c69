// Package monitoring has alert rules for Prometheus and a dashboard for Grafana: alerts.yaml and dashboard.json. The dashboard is
// generated from the tables of docs/monitoring.md, and a test parses every expression of both and compares its metrics and
// labels with those tables.
//
// It is a module of its own because the test needs Prometheus's parser.
package monitoring
