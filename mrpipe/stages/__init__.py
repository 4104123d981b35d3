"""The steps from an export to a sealed store, one per module; steps communicate through files only."""
