"""Memory, files and threads of this process and machine. Nothing here depends on the format."""
