"""DECIDE: networks, graphs, the numeric law, plans, costs and search. Knows nothing of kernels, files or devices."""
