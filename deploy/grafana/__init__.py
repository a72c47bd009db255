"""The Grafana dashboard, by code."""
