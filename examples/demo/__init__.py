"""The whole path on one machine: authority, node agent, four real Envoys, and thirteen checks.

Run it with `make demo` or `python -m examples.demo --help`; docs/demo.md tells how to poke at it.
"""
