"""Metrics for Prometheus and the HTTP server that shows them, beside the probes `/livez` and `/readyz`."""
