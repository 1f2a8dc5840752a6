"""MEASURE: latency harness, peers and reports; the pytest-benchmark suites lie in `suites/`."""
