"""The Kubernetes API for our processes: a light client, capability discovery, list and watch."""
