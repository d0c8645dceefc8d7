"""Object stores: they hold named, immutable bytes and nothing else.

Drivers do not know the format: to them, a pack is a run of bytes.
"""
