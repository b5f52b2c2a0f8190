"""The four papers: `udp` (U), `uta` (T), `rethinking` (R) and `framework` (F), each with its `EXPERIMENTS`.

Beside a module lies a text file with the paper's tables, as printed.
"""
