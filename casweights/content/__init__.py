"""What goes into versions and comes out of them: files, state dicts, and parts of them.

For what is in a store already, some modules read it through `database`.
"""
