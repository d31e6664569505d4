"""The only place with sockets, subprocesses and foreign libraries."""
