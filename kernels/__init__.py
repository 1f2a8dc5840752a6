"""COMPUTE: packed tensors and the kernel rows that multiply them. Imports core.encoding, core.quant, core.errors only."""
