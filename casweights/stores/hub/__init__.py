"""Stores in buckets of the Hugging Face Hub.

`api`, `client` and `xet` contain all calls into huggingface_hub and hf_xet, except for the path of
the cache. The stores build on them.
"""
