"""Programs for developers: demos, benchmarks, long checks, and a second reader of the format."""
