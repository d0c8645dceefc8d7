"""The contents of versions: files, state dicts, and parts of both.

Most modules describe what a commit reads or a checkout writes. `weights` and `unsaved` also read
versions from a store.
"""
