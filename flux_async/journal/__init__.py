"""The durable record of a batch, and the lock of the process that runs it."""
