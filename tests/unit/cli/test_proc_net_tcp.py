"""Rows of /proc/net/tcp."""

from __future__ import annotations

from imdsproxy.cli.proc_net_tcp import Row, read_tcp_table

LITTLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:203E 00000000:0000 0A 00000000:00000000 00:00000000 00000000   990        0 12345 1 0 100 0 0 10 0
   1: 0400000A:C350 FEA9FEA9:0050 01 00000000:00000000 00:00000000 00000000    33        0 12346 1 0 100 0 0 10 0
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12347 1 0 100 0 0 10 0
"""


def test_rows_have_addresses_state_user_and_inode() -> None:
    proxy, call, ssh = read_tcp_table(LITTLE, "little")
    assert proxy == Row(("127.0.0.1", 8254), ("0.0.0.0", 0), "0A", 990, 12345)
    assert call == Row(("10.0.0.4", 50000), ("169.254.169.254", 80), "01", 33, 12346)
    assert (proxy.calls, call.calls) == (False, True)
    assert proxy.listens_at("127.0.0.1", 8254)
    assert not proxy.listens_at("127.0.0.2", 8254)
    assert not proxy.listens_at("127.0.0.1", 8255)
    assert ssh.listens_at("127.0.0.2", 22)
    assert not call.listens_at("10.0.0.4", 50000)


def test_addresses_of_a_big_endian_machine_are_read_in_its_order() -> None:
    (row,) = read_tcp_table(f"head\n{LITTLE.splitlines()[1].replace('0100007F', '7F000001')}", "big")
    assert row.local == ("127.0.0.1", 8254)
