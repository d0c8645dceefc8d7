"""Dumb object stores: named immutable bytes, and nothing else.

Drivers know nothing of the format: a pack is bytes to them.
"""
