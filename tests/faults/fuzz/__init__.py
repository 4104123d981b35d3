"""Seeded, structure-aware mutations of every input that the project reads.

    python -m tests.faults.fuzz --reader mosi --n 1000 --seed 0 --save findings

Each mutation is read in a process of its own limits. Allowed outcomes are success and the project's own error. Anything
else is a finding: another exception, the end of the process, more time or memory than the limits, or a change that
must be refused and is accepted.
"""
