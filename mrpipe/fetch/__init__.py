"""Download of openly licensed data sets, and their conversion to tables that the readers know."""
