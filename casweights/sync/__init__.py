"""Live sync: a trainer publishes its tensors, replicas patch theirs in place."""
