"""Real faults on real processes: what `make prove` breaks, and what is counted in the lake afterwards. See docs/prove.md."""
