"""The node agent: delivers SVIDs and proxy configuration over one Unix socket per workload."""
