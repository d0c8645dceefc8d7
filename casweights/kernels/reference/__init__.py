"""The kernels of encodings and patches in Python and numpy: slower than compiled, same bytes.

casweights uses them if it was installed without a C compiler, and tests compare them with the
compiled kernels. ``docs/format.md`` specifies the bytes.
"""
