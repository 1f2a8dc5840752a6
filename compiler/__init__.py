"""DELIVER: integer graph -> packed program -> `.bpk`. Imports core and kernels."""
