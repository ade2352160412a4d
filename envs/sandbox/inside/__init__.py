"""What runs inside a sandbox: the executor, which is its PID 1, and the nursery that forks those of bubblewrap.

Standard library only: the files are carried in and run by whatever Python is there.
"""
