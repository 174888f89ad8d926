"""Observability: JSON logging, metrics, health."""
