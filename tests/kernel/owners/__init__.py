"""The matrix of owners: processes with known ends of flows, and what conntracker and ss(8) say of them.

`plan` is the table of cases. `stage` is the process that plays it, with `servers` and `clients` of TCP, `datagrams`,
`echoes`, `programs` and quick.c, who all stand at a `post` and make `children`; each end is written down by who has it
(`truth`). `network` and `cgroup` are where it happens, `capture` is who is tested, `judge` compares, and `matrix` puts
all together. `bpf_objects` is for the tests of what is left behind.
"""
