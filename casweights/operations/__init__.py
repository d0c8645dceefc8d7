"""The verbs that `Repository` calls, one file each, and what several of them share.

Shared are `encode`, `differences`, `relatives`, `transfer` and `frame_check`. Verbs of a line or
two, such as making a tag, are in `Repository`; `pull` is the other store's `push`.
"""
