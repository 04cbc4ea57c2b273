"""What was measured: the files of a study, the table of measurements, and estimates."""
