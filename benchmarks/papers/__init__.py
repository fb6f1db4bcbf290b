"""Published figures, reproduced: one file a benchmark, each a subcommand of `python -m benchmarks.papers`."""
