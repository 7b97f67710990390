"""Reading with line numbers, writing whole files, field names, cache folders: one place for each.

None of this is saved with a checkpoint, and of the package it imports only the errors and the text rules.
"""
