"""The host's side of every sandbox: the stream to its executor, the program given to it, its filter, owner, lease."""
