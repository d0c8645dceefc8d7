"""Live sync: a trainer publishes its tensors, replicas patch theirs in place.

The trainer's side: `publisher` hands states over (`handoff`, `steps`) to the thread that writes
them (`branch_writer`). What changed is found in a `mirror`, which is a `state_copy` that can go
back to the state before (`kept_state`); small tensors are compared together (`tensor_groups`).

The replica's side: a `subscriber` follows a branch (`branch_reader`), matches the model with a
version (`target`, `replica`), fetches changes ahead (`fetch`) and writes them (`apply`), or hands
them out as `patches`.

Both use `models` (what callers pass), `live` tensors, element `changes` and `devices`.
"""
