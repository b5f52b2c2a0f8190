"""The four papers: `udp` (U), `uta` (T), `rethinking` (R) and `framework` (F), each with its `EXPERIMENTS`.

Beside a module lie the paper's tables, as printed (`.txt`), and the titles and notes of its experiments (`.toml`).
"""
