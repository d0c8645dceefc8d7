"""The kernels of encodings and patches in Python and numpy: slower than compiled, same bytes.

They serve where no compiler was at hand when casweights was installed, and tests compare the two.
docs/format.md says what the bytes are.
"""
