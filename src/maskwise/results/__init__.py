"""What was measured: the files of a study, the table of measurements, estimates; what is usual."""
