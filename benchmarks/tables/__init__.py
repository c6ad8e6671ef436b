"""The paper's Tables 1 to 8 and Figure 8, each a command: `python -m benchmarks.tables table5`."""
