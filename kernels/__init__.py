"""COMPUTE: packed tensors and the kernel rows that multiply them.

Imports core.encoding, core.quant and core.errors only.
"""
