"""This process and this machine: memory, files, threads. Nothing here knows what is stored."""
