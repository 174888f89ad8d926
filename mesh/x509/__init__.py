"""X.509 helpers: PEM framing, chains, SVID fields. Pure."""
