"""Reference formulas of the poolings and heads, for tests and benchmarks."""
