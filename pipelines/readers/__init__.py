"""File formats behind sources.py: tables, ids, content and which files a folder holds."""
