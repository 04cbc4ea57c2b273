"""Work in other processes: pools of workers, and processes that train one model together."""
