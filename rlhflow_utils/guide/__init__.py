"""How a run is configured, kept, executed and shown (all chapters). Knows no model, loss or metric.

Not here: what a stage does (the other rooms), and the chapters themselves (`notebooks/source/`).
"""
