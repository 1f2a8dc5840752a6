"""Search methods: one file a method (schedule and objective only); the registry is `SEARCHES`."""
