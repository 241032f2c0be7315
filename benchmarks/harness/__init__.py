"""What the benchmarks have in common: their form, the words about the machine, child processes, charts."""
