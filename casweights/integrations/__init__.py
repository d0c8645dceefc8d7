"""Integrations with training and inference libraries.

Import only the modules whose libraries are installed; no other part of casweights imports them.
"""
