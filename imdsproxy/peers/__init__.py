"""The clients on this machine: who is at the other end of a connection.

`lookup` asks the kernel: `sock_diag` for the user of a TCP client on this machine, SO_PEERCRED for the user and process
at a Unix socket. This room knows nothing of HTTP or of the use of the answer.
"""
