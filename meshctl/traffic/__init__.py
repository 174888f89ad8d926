"""`meshctl check --traffic`: pods that call each other, and rows about what they saw."""
