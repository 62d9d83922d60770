"""Results of a sweep for notebooks and scripts: tables, arrays, maps and figures, read from the record alone.

Nothing here writes to a record. `phasefront.py`, at the top of the repository, is the public face.
"""
