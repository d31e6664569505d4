"""The matrix of owners: processes with known ends of flows, and what conntracker and ss(8) say of them.

`plan` is the table of cases. `stage` is the process that plays it, with `servers` and `clients` of TCP, `datagrams`,
`echoes`, `programs` and quick.c; each end is written down by who has it (`truth`). `network` is where it happens,
`capture` who is tested, `judge` compares, and `matrix` puts all together.
"""
