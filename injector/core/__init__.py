"""Pure core of the injector: pod and options in, decision and patch out."""
