"""Reading with line numbers, writing whole files, field names, cache folders: one place for each.

None of this travels with a checkpoint, and it imports no more of the package than its errors and its text rules.
"""
