"""Structural MRI: reading scans, the chain from a T1 to a grey-matter map in template space, quality control."""
