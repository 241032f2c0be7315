"""The durable record of a batch, and the right to run it."""
