"""What developers run on a checkout: demos, benchmarks, long checks and a second reader."""
