"""The verbs that `Repository` calls, one file each, and the modules that several verbs share.

The shared modules are `encode`, `differences`, `relatives`, `transfer` and `frame_check`. Verbs of
one or two lines, such as creating a tag, are in `Repository`. `pull` is a `push` from the other
store.
"""
