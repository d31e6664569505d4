"""Bytes of the kernel to columns or records. Pure: no sockets, no files."""
