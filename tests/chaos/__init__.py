"""Faults injected into real drivers, Ray nodes, databases and servers, and what must hold afterwards.

    python -m tests.chaos --faults 300 --seed 1     # make chaos CHAOS=300 SEED=1

A seed decides sweeps, kinds of faults, their order, durations and pauses; `--only N` repeats round N alone.
"""
