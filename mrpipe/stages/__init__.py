"""The steps from an export to a sealed store; each reads files and writes files, and a module holds one step."""
