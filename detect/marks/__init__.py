"""Marks made by others: each scheme's hash, its law, and its named weaknesses. One file a scheme.

`detect.marks.mark_file.load_mark` reads an operator's own configuration into one of them.
"""
