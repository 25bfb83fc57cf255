"""Other programs that do the same job, each run in an environment and a process of its own."""
