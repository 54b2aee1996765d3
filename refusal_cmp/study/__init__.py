"""Studies: one file of models × seeds × settings, each cell a normal run, and a report over all of them."""
