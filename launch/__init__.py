"""The verbs that a person types, one file each: reading arguments and printing only."""
