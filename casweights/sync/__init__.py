"""Live sync: a trainer publishes its tensors, and replicas update theirs in place.

The trainer's side: `publisher` passes states (`steps`) through a queue (`handoff`) to the thread
that writes them (`branch_writer`). A `mirror` finds the changes: it keeps a copy of the last state
(`state_copy`) and can restore the state before it (`kept_state`). Small tensors are compared in
batches (`tensor_groups`).

The replica's side: a `subscriber` follows a branch (`branch_reader`), matches the model with a
version (`target`, `replica`), fetches changes ahead (`fetch`), and writes them (`apply`) or
returns them as `patches`.

Both sides use `models` (the arguments of callers), `live` tensors, element `changes` and `devices`.
"""
