"""Several trained adapters made one: pure functions on the factors of one layer."""
