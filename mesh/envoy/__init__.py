"""Rendering of effective policy and topology into Envoy resources, from protobuf messages."""
