"""Processes that grade with code that may hang, crash or eat memory, and may be killed."""
