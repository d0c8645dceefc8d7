"""The format of stores, and of safetensors files: pure conversions between bytes and values.

Nothing here does I/O, starts threads or knows of stores. ``docs/format.md`` specifies every byte.
"""
