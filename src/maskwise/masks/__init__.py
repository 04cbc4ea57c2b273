"""Look at masks, and write them: in the terminal, as pages and as files."""
