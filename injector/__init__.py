"""The sidecar injector: admission webhooks that put an init container and a stock Envoy into pods."""
