"""What a sandbox may reach beside itself: the packet filter, and the links that lead to it."""
