"""What a sweep file names under `analysis:`. Each kind maps a record to the functions of `orchestrator.analysis`."""
