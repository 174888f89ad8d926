"""The shared kernel: identities, X.509, policy model, Envoy rendering, observability.

`injector`, `ca` and `nodeagent` never import each other; what they share lives here.
"""
