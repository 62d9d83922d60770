"""`phasefront ui`: a small local page that shows a sweep while it runs; it reads the record and writes nothing."""
