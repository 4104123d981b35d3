"""Structural MRI: reading scans, processing T1 images to grey-matter maps in template space, quality control."""
