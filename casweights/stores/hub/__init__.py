"""Stores in buckets of the Hugging Face Hub.

`api` and `xet` hold every call into huggingface_hub and hf_xet; the stores build on them.
"""
