"""The format of stores and of safetensors files: pure conversions between bytes and values.

No module here does I/O, starts threads or uses stores. ``docs/format.md`` specifies every byte.
"""
