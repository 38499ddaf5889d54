"""The tiny profile's world: a closed invented world in which human preference is known exactly.

Built in: the facts, the gold reward, the quality and padding of the written answers, each annotator's noise, skill mix
and taste for length, and exam sheets and comparisons in the base corpus. Measured: everything a model learns from it.
"""
