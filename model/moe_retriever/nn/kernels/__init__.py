"""Fast kernels for training on a CPU, each with a plain implementation in standard torch operations.

Both have the same outputs and gradients up to rounding. `mrpipe train --kernels plain` selects the plain ones.
"""

# Whether the plain implementations are selected.
plain = False
