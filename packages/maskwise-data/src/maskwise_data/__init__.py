"""Data of maskwise that its wheel has no room for; README.md here has sources and licences.

``maskwise.base.folders.bundled_file`` finds a file by its name.
"""
