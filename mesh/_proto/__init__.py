"""Generated protobuf messages (`make proto`); not linted, not measured."""
