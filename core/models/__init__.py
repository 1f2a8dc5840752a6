"""The zoo: the papers' networks as plain modules, one file a family."""
